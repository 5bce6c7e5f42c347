// Images and the labels given with them -> another format, each streamed from header to last voxel.
include { memoryFor; timeFor } from '../../functions/resources'

process CONVERT_IMAGES {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(meta.needs?.whole?.memory, task) }
    time { timeFor(meta.needs?.whole?.seconds, task) }

    input:
    tuple val(meta), '-', path(images, stageAs: '_images/?/*'), val(_fingerprints)
    val options
    val _code

    output:
    tuple val(meta), path('*/*.{zarr,tif,gz,nii,mha,nrrd,h5,png,jpg,slices}'), emit: files
    path '*/*.converted.json', emit: info
    path "${meta.id}/${meta.id}.convert_images.json", emit: record

    script:
    """
    convert_images.py --batch ${meta.id} --images _images ${options}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample
        touch \$sample/\$sample.ome.tif \$sample/\$sample.converted.json
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.convert_images.json
    """
}
