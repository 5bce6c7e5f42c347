// Probabilities that several models gave to the blocks of whole samples -> blocks of labels, and the mean probabilities
// where they are to be kept.
include { memoryFor; timeFor } from '../../functions/resources'

process AVERAGE_MODELS {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(meta.needs?.average_models?.memory, task) }
    time { timeFor(meta.needs?.average_models?.seconds, task) }

    input:
    tuple val(meta), path(blocks), path(plans)
    val members
    val options
    val _code

    output:
    tuple val(meta), path('*/*.b*[0-9].zarr'), emit: blocks, optional: true
    tuple val(meta), path('*/probabilities.ome.zarr'), emit: store, optional: true
    path "${meta.id}/${meta.id}.average_models.json", emit: record

    script:
    """
    average_models.py --batch ${meta.id} --members ${members} ${options}
    """

    stub:
    """
    for block in ${[blocks].flatten().collect { block -> block.name - '.probabilities.zarr' }.findAll { name -> name =~ /\.m1\.b\d+$/ }.join(' ')}; do
        sample=\${block%.m1.b*}
        mkdir -p \$sample/\$sample.b\${block##*.b}.zarr
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.average_models.json
    """
}
