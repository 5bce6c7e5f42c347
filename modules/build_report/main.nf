// Everything a run left -> the report; fails if a sample of samples.json did not arrive.
include { memoryFor; timeFor; sizeOf } from '../../functions/resources'

process BUILD_REPORT {
    label 'process_single'
    memory { memoryFor(1_000_000_000 + 10 * sizeOf([staged].flatten().findAll { file -> file.name.endsWith('.json') }), task) }
    time { timeFor(sizeOf(staged) / 1e6, task) }

    input:
    path samples
    path estimate
    path staged, stageAs: '_staged/*'
    path packed, stageAs: '_package?'
    stdin
    val _code

    output:
    path 'report.html', emit: report
    path 'report/*', emit: pages, optional: true
    path 'outputs.json', emit: outputs
    path 'outputs.sha256', emit: checksums
    path 'ro-crate-metadata.json', emit: crate
    path 'params.json', emit: params

    script:
    """
    cat > params.json
    build_report.py --samples ${samples} --estimate ${estimate} --params params.json ${[packed].flatten().indexed(1).collect { n, _folder -> "--package _package${n}" }.join(' ')} _staged
    """

    stub:
    """
    cat > params.json
    touch report.html outputs.json outputs.sha256 ro-crate-metadata.json
    """
}
