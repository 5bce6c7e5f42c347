// Any format -> store, in one streaming pass. An image that is chunked Zarr already is measured, not copied.
// Labels that are given become blocks as STITCH_BLOCKS writes them; blocks of background alone are left out.
include { memoryFor; timeFor } from '../../functions/resources'

process IMPORT_IMAGE {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(meta.needs?.import_image?.memory, task) }
    time { timeFor(meta.needs?.import_image?.seconds, task) }

    input:
    tuple val(meta), '-', path(images, stageAs: '_images/?/*'), val(_fingerprints)
    val options
    val _code

    output:
    tuple val(meta), path('*/*.image.json'), emit: info
    tuple val(meta), path('*/*.image.zarr'), emit: store, optional: true
    path '*/*.projections.npz', emit: pictures
    tuple val(meta), path('*/*.grid.json'), path("${meta.id}/${meta.id}.blocks.csv"), emit: grid, optional: true
    tuple val(meta), path('*/blocks/*.b*.zarr'), emit: blocks, optional: true
    path "${meta.id}/${meta.id}.import_image.json", emit: record

    script:
    """
    import_image.py --batch ${meta.id} --images _images ${options}
    """

    stub:
    def given = meta.start == 'predict' ? '' : """
    echo sample,block,group,n_pieces > ${meta.id}/${meta.id}.blocks.csv
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/blocks/\$sample.b0.zarr
        touch \$sample/\$sample.grid.json
        echo \$sample,0,0,0 >> ${meta.id}/${meta.id}.blocks.csv
    done
    """.stripIndent()
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/\$sample.image.zarr
        touch \$sample/\$sample.image.json \$sample/\$sample.projections.npz
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.import_image.json
    ${given}
    """
}
