// What was found about every sample -> tables, a report and checksums; fails if a sample of samples.json did not arrive.
include { memoryFor; timeFor; sizeOf } from '../../functions/resources'

process LIST_EVALUATED {
    label 'process_single'
    memory { memoryFor(1_000_000_000 + 10 * sizeOf(results), task) }
    time { timeFor(sizeOf(results) / 1e6, task) }

    input:
    path samples
    path results, stageAs: '_results/*'
    stdin // the run's params, as JSON
    val options
    val _code

    output:
    path 'evaluation.{csv,json}', emit: tables
    path 'report.html', emit: report
    path 'outputs.sha256', emit: checksums
    path 'list_evaluated/list_evaluated.list_evaluated.json', emit: record

    script:
    """
    cat > params.json
    list_evaluated.py --samples ${samples} --results _results --params params.json ${options}
    """

    stub:
    """
    cat > params.json
    mkdir -p list_evaluated
    touch evaluation.csv evaluation.json report.html outputs.sha256 list_evaluated/list_evaluated.list_evaluated.json
    """
}
