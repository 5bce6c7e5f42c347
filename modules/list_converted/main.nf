// What was converted -> a samplesheet, a table and checksums; fails if a sample of samples.json did not arrive.
include { memoryFor; timeFor; sizeOf } from '../../functions/resources'

process LIST_CONVERTED {
    label 'process_single'
    memory { memoryFor(1_000_000_000, task) }
    time { timeFor(sizeOf(results) / 1e6, task) }

    input:
    path samples
    path results, stageAs: '_results/*'
    val options
    val _code

    output:
    path '{samples,converted}.csv', emit: tables
    path 'outputs.sha256', emit: checksums
    path 'list_converted/list_converted.list_converted.json', emit: record

    script:
    """
    list_converted.py --samples ${samples} --results _results ${options}
    """

    stub:
    """
    mkdir -p list_converted
    touch samples.csv converted.csv outputs.sha256 list_converted/list_converted.list_converted.json
    """
}
