// Labels of a group of blocks, and the image under them -> the components of their shards, and which of them touch.
include { memoryFor; timeFor } from '../../functions/resources'

process LABEL_BLOCKS {
    tag "${meta.id} ${group}"
    label 'process_single'
    memory { memoryFor(meta.needs?.label_blocks?.memory, task) }
    time { timeFor(meta.needs?.label_blocks?.seconds, task) }

    input:
    tuple val(meta), val(group), path(blocks), path(rows), path(grids), path(infos), path(stores, stageAs: 'stores/*'), val(_fingerprints)
    val options
    val _code

    output:
    tuple val(meta), path('*/*.components'), emit: components
    path "${meta.id}/${meta.id}.label_blocks.${group}.json", emit: record

    script:
    """
    label_blocks.py --batch ${meta.id} --group ${group} ${options}
    """

    stub:
    """
    for block in ${[blocks].flatten().collect { block -> block.name - '.zarr' }.join(' ')}; do
        mkdir -p \${block%.b*}
        touch \${block%.b*}/\$block.components
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.label_blocks.${group}.json
    """
}
