// Labels and their truth, read box by box -> how well they agree, every object with its partner, pictures of the worst.
include { memoryFor; timeFor } from '../../functions/resources'

process EVALUATE_LABELS {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(meta.needs?.whole?.memory, task) }
    time { timeFor(meta.needs?.whole?.seconds, task) }

    input:
    tuple val(meta), '-', path(images, stageAs: '_images/?/*'), val(_fingerprints)
    val options
    val _code

    output:
    path '*/*.evaluation.json', emit: info
    path '*/*.matches.{csv,parquet}', emit: matches, optional: true
    path '*/*.worst.npz', emit: pictures
    path "${meta.id}/${meta.id}.evaluate_labels.json", emit: record

    script:
    """
    evaluate_labels.py --batch ${meta.id} --images _images ${options}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample
        touch \$sample/\$sample.evaluation.json \$sample/\$sample.matches.csv \$sample/\$sample.matches.parquet \$sample/\$sample.worst.npz
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.evaluate_labels.json
    """
}
