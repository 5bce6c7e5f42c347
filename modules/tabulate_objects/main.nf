// Linked objects and their measures -> tables, JSON, charts and the report's pictures.
include { memoryFor; timeFor; sizeOf } from '../../functions/resources'

process TABULATE_OBJECTS {
    tag "${meta.id}"
    label 'process_single'
    memory { memoryFor(1_000_000_000 + 20 * sizeOf([linked, measures]), task) }
    time { timeFor(sizeOf([linked, measures]) / 1e6, task) }

    input:
    tuple val(meta), path(measures), path(linked), path(linked_json), path(grids), path(infos), path(stores, stageAs: 'stores/*'), val(_fingerprints), path(labels, stageAs: 'labels/?/*')
    val options
    val _code

    output:
    tuple val(meta), path('*/*.objects.parquet'), path('*/*.objects.json'), emit: tables
    path '*/*.{objects.csv,profiles.parquet,axons.json,lengths.png,lengths.svg,sizes.png,sizes.svg}', emit: files // which of them, --measure decides
    path '*/*.gallery.npz', emit: gallery
    path "${meta.id}/${meta.id}.tabulate_objects.json", emit: record

    script:
    """
    tabulate_objects.py --batch ${meta.id} --samples ${meta.samples.join(',')} ${options}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample
        for file in objects.csv objects.parquet objects.json profiles.parquet axons.json lengths.png lengths.svg sizes.png sizes.svg gallery.npz; do
            touch \$sample/\$sample.\$file
        done
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.tabulate_objects.json
    """
}
