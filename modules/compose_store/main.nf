// Blocks of whole samples -> NGFF labels; what has no block is background.
include { memoryFor; timeFor } from '../../functions/resources'

process COMPOSE_STORE {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(meta.needs?.compose_store?.memory, task) }
    time { timeFor(meta.needs?.compose_store?.seconds, task) }

    input:
    tuple val(meta), path(blocks), path(grids), path(summaries)
    val _code

    output:
    tuple val(meta), path('*/labels.ome.zarr'), emit: store
    path '*/*.labels.json', emit: info
    path '*/*.label_pictures.npz', emit: pictures, optional: true
    path "${meta.id}/${meta.id}.compose_store.json", emit: record

    script:
    """
    compose_store.py --batch ${meta.id}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/labels.ome.zarr
        touch \$sample/labels.ome.zarr/zarr.json \$sample/\$sample.labels.json \$sample/\$sample.label_pictures.npz
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.compose_store.json
    """
}
