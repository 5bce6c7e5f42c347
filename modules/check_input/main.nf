// Opens every header, reports all faults at once, and says what the run will take.
process CHECK_INPUT {
    label 'process_single'

    input:
    tuple path(sheet, stageAs: 'samplesheet.csv'), path(images, stageAs: '_images/?/*'), val(missing), val(_fingerprints)
    path packed, stageAs: '_package?'
    path steps, stageAs: '_steps/*' // a postprocessing.json, or nothing
    path schema
    val options
    val _code

    output:
    path 'check/samples.json', emit: samples
    path 'check/estimate.json', emit: estimate
    path 'check/check.check_input.json', emit: record
    stdout emit: table

    script:
    def named = sheet ? "--input samplesheet.csv --images ${images instanceof List ? images.size() : 1}" : ''
    """
    ${missing.collect { number -> "rm -r _images/${number}" }.join('\n    ')}
    check_input.py ${named} --staged _images ${[packed].flatten().indexed(1).collect { n, _folder -> "--package _package${n}" }.join(' ')} --schema ${schema} --workers ${task.cpus} ${steps ? '--postprocessing _steps/*' : ''} ${options}
    """

    stub:
    def numbers = images instanceof List ? (1..images.size()) : [1]
    def samples = numbers.collect { n -> [id: "stub${n}", batch: "stub${n}", start: packed ? 'predict' : 'assemble', images: [n], in_place: false] }
    """
    mkdir -p check
    echo '${groovy.json.JsonOutput.toJson([samples: samples, skipped: [], estimate: [:]])}' > check/samples.json
    echo '{}' > check/estimate.json
    touch check/check.check_input.json
    """
}
