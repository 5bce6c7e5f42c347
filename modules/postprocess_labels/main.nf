// Blocks of predicted labels of whole samples -> the same blocks after the model's own post-processing.
include { memoryFor; timeFor } from '../../functions/resources'

process POSTPROCESS_LABELS {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(meta.needs?.postprocess_labels?.memory, task) }
    time { timeFor(meta.needs?.postprocess_labels?.seconds, task) }

    input:
    tuple val(meta), path(blocks), path(grids)
    path packed, stageAs: '_package'
    path steps, stageAs: '_steps/*' // a postprocessing.json, or nothing: the model's own
    val _code

    output:
    tuple val(meta), path('*/*.b*.zarr'), emit: blocks
    path "${meta.id}/${meta.id}.postprocess_labels.json", emit: record

    script:
    """
    postprocess_labels.py --batch ${meta.id} --package _package --steps ${steps ? '_steps/*' : 'model'}
    """

    stub:
    """
    for block in ${[blocks].flatten().collect { block -> block.name }.join(' ')}; do
        mkdir -p \${block%.b*}/\$block
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.postprocess_labels.json
    """
}
