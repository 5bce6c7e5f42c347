// Reads params, prints help or every fault, runs one named workflow, and says how it ended.
include { readJson; paramFaults; mutualFaults; helpText; flags; memoryBytes; recordedParams } from './functions/params'
include { readInput; inputTuple; existing } from './functions/inputs'
include { outdirFaults } from './functions/outdir'
include { fingerprint; codeDigest } from './functions/digests'
include { closingText } from './functions/closing'
include { MAKE_DEMO } from './modules/make_demo/main'
include { SEGMENT } from './workflows/segment'
include { CONVERT } from './workflows/convert'
include { EVALUATE } from './workflows/evaluate'

workflow {
    def schema = readJson(file("${projectDir}/nextflow_schema.json"))
    if (params.help) {
        log.info(helpText(schema, workflow.manifest.version))
        return
    }
    def faults = paramFaults(params, schema) + mutualFaults(params, schema) + outdirFaults(params.outdir.toString())
    if (faults) {
        error("${faults.join('\n')}\nTry --help.")
    }

    def models = (params.model ?: '').toString().tokenize(';').collect { name -> existing('model', name.trim()) }
    def values = params + [memory_budget: memoryBytes(params.memory_budget), gpu_memory_budget: memoryBytes(params.gpu_memory_budget), spacing_unit: params.model_spacing_unit, save_probabilities: params.save_probabilities ? 'uint8' : null, method: params.instances, evaluate: params.workflow == 'evaluate', postprocessing: params.postprocessing == 'model' ? 'model' : null]
    def conversion = ['format', 'target_spacing', 'order', 'label_resampling', 'orientation', 'repair_header', 'align_labels', 'border_core']
    def job = [
        models: models.collect { model -> [model, fingerprint(model)] },
        device: params.device,
        probabilities: params.save_probabilities,
        postprocessing: params.postprocessing != 'none',
        steps: params.postprocessing in ['none', 'model'] ? [] : existing('postprocessing', params.postprocessing.toString()),
        patches: params.save_patches,
        outdir: params.outdir.toString(),
        mode: params.publish_dir_mode,
        schema: file("${projectDir}/assets/schema_input.json"),
        last: params.dry_run ? 'check' : params.stop_after ?: 'analyze',
        instances: params.stop_after == 'predict' ? 'none' : params.instances,
        export: params.export,
        options: [
            pack: flags(values, ['folds', 'checkpoint', 'spacing_unit', 'trust_model']),
            check: flags(values, ['axes', 'series', 'timepoint', 'level', 'dataset', 'channel', 'intensity', 'flip', 'spacing', 'unit', 'box', 'preview', 'on_bad_sample', 'missing_chunks', 'nonfinite', 'tile_size', 'task_minutes', 'memory_budget', 'gpu_memory_budget', 'batch_size', 'step_size', 'mirroring', 'engine', 'device', 'threads', 'shard_size', 'check', 'save_probabilities', 'postprocessing', 'allow_spacing_mismatch', 'min_object_volume', 'evaluate', 'ignore_label', 'method'] + (params.workflow == 'convert' ? conversion : params.instances == 'border_core' ? ['core_label', 'border_label'] : [])),
            import_image: flags(values, ['shard_size']),
            average: flags(values, ['save_probabilities']),
            probe: flags(values, ['engine', 'batch_size', 'gpu_memory_budget', 'shard_size', 'save_probabilities', 'cpu_fallback', 'tasks_per_gpu']),
            plan: flags(values, ['save_probabilities', 'step_size', 'mirroring', 'engine', 'device', 'threads', 'batch_size', 'tile_size', 'task_minutes', 'memory_budget', 'gpu_memory_budget', 'shard_size']),
            gather: flags(values, ['method', 'core_label', 'border_label']),
            mark: flags(values, ['core_label', 'border_label']),
            separate: flags(values, ['method', 'components_of', 'seed_distance', 'memory_budget']),
            label: flags(values, ['components_of', 'connectivity']),
            link: flags(values, ['components_of', 'connectivity', 'min_object_voxels', 'min_object_volume', 'min_object_fraction', 'border_objects', 'memory_budget']),
            measure: flags(values, ['measure', 'length', 'memory_budget']),
            tabulate: flags(values, ['measure', 'length']),
            compare: flags(values, ['length', 'on_bad_sample']),
            export: flags(values, ['export', 'label_values', 'memory_budget']),
            patches: flags(values, ['memory_budget']),
            convert: flags(values, conversion + ['memory_budget']),
            evaluate: flags(values, ['ignore_label', 'memory_budget']),
            list: flags(values, ['on_bad_sample']),
        ],
        code: [:].withDefault { script -> codeDigest(file("${projectDir}/bin"), script) },
        record: recordedParams(params, schema, workflow),
    ]

    // [samplesheet or nothing, images, numbers of the missing ones, fingerprints]
    ch_input = params.input == 'demo'
        ? MAKE_DEMO("--shape ${params.demo_shape.replace(',', ' ')}", job.code.make_demo).map { images -> inputTuple([sheet: null, images: [images].flatten()]) }
        : channel.value(inputTuple(readInput(params.input.toString(), params.stack, params.workflow == 'evaluate' ? ['semantic', 'instances', 'truth'] : ['semantic', 'instances'])))

    if (params.workflow == 'convert') {
        CONVERT(ch_input, job)
        CONVERT.out.ch_table.view()
    }
    else if (params.workflow == 'evaluate') {
        EVALUATE(ch_input, job)
        EVALUATE.out.ch_table.view()
    }
    else {
        SEGMENT(ch_input, job)
        SEGMENT.out.ch_table.view()
    }

    workflow.onComplete = { log.info(closingText(workflow, params.outdir)) }
}
