// Blocks of probabilities of whole samples -> NGFF images with a channel per class; what has no block is background.
include { memoryFor; timeFor } from '../../functions/resources'

process COMPOSE_PROBABILITIES {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(meta.needs?.compose_probabilities?.memory, task) }
    time { timeFor(meta.needs?.compose_probabilities?.seconds, task) }

    input:
    tuple val(meta), path(blocks), path(plans)
    val _code

    output:
    tuple val(meta), path('*/probabilities.ome.zarr'), emit: store
    path "${meta.id}/${meta.id}.compose_probabilities.json", emit: record

    script:
    """
    compose_probabilities.py --batch ${meta.id}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/probabilities.ome.zarr
        touch \$sample/probabilities.ome.zarr/zarr.json
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.compose_probabilities.json
    """
}
