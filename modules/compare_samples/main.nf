// Tables of all samples -> one table, and the comparison of groups; fails if a sample of samples.json did not arrive.
include { memoryFor; timeFor; sizeOf } from '../../functions/resources'

process COMPARE_SAMPLES {
    label 'process_single'
    memory { memoryFor(1_000_000_000 + 20 * sizeOf(tables), task) }
    time { timeFor(sizeOf(tables) / 1e6, task) }

    input:
    path tables, stageAs: '_tables/*'
    path samples
    val options
    val _code

    output:
    path 'cohort.json', emit: cohort
    path 'objects.{csv,parquet}', emit: tables
    path '{lengths,sizes}_by_group.{png,svg}', emit: charts, optional: true
    path 'compare_samples/compare_samples.compare_samples.json', emit: record

    script:
    """
    compare_samples.py --samples ${samples} --tables _tables ${options}
    """

    stub:
    """
    mkdir -p compare_samples
    touch cohort.json objects.csv objects.parquet lengths_by_group.png lengths_by_group.svg compare_samples/compare_samples.compare_samples.json
    """
}
