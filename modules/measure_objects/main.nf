// The objects of one task, cut out of labels and image -> skeleton, lengths, thickness and profile, one row per object.
include { memoryFor; timeFor } from '../../functions/resources'

process MEASURE_OBJECTS {
    tag "${meta.id} ${task_number}"
    label 'process_single'
    memory { memoryFor(need.memory, task) }
    time { timeFor(1800, task) }

    input:
    tuple val(meta), val(task_number), val(need), path(linked), path(table), path(grids), path(infos), path(stores, stageAs: 'stores/*'), val(_fingerprints), path(labels, stageAs: 'labels/?/*')
    val options
    val _code

    output:
    tuple val(meta), path('*/*.measures.parquet'), emit: measures
    path "${meta.id}/${meta.id}.measure_objects.${task_number}.json", emit: record

    script:
    """
    measure_objects.py --batch ${meta.id} --task ${task_number} --samples ${meta.samples.join(',')} ${options}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample
        touch \$sample/\$sample.m${task_number}.measures.parquet
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.measure_objects.${task_number}.json
    """
}
