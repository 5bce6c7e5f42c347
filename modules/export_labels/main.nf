// The label stores of a batch -> label files in the format of the input, outlines of single planes.
include { budgeted; memoryFor; timeFor } from '../../functions/resources'

process EXPORT_LABELS {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(budgeted(meta.needs?.export_labels?.memory, options), task) }
    time { timeFor(meta.needs?.export_labels?.seconds, task) }

    input:
    tuple val(meta), path(grids), path(infos), path(labels, stageAs: 'labels/?/*')
    val options
    val _code

    output:
    path '*/*.label_*', emit: files, optional: true
    path "${meta.id}/${meta.id}.export_labels.json", emit: record

    script:
    """
    export_labels.py --batch ${meta.id} --samples ${meta.samples.join(',')} ${options}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample
        touch \$sample/\$sample.label_raw.tif \$sample/\$sample.label_binary.tif \$sample/\$sample.label_instances.tif
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.export_labels.json
    """
}
