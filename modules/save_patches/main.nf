// Plans and images of a batch -> the voxels of every tile as TIFF, and where they lie.
include { budgeted; memoryFor; timeFor } from '../../functions/resources'

process SAVE_PATCHES {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(budgeted(meta.needs?.save_patches?.memory, options), task) }
    time { timeFor(meta.needs?.save_patches?.seconds, task) }

    input:
    tuple val(meta), path(plans), path(infos), path(stores, stageAs: 'stores/*'), val(_fingerprints)
    val options
    val _code

    output:
    tuple val(meta), path('*/patches/*.{tif,json}'), emit: patches
    path "${meta.id}/${meta.id}.save_patches.json", emit: record

    script:
    """
    save_patches.py --batch ${meta.id} ${options}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/patches
        touch \$sample/patches/\$sample.t0.tif \$sample/patches/\$sample.t0.json
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.save_patches.json
    """
}
