// Images and model -> what prediction needs, sample by sample or in batches of small ones; given labels -> blocks.
include { PACK_MODEL   } from '../modules/pack_model/main'
include { CHECK_INPUT  } from '../modules/check_input/main'
include { IMPORT_IMAGE } from '../modules/import_image/main'
include { PROBE_DEVICE } from '../modules/probe_device/main'
include { PLAN_TILES   } from '../modules/plan_tiles/main'
include { batches; byGroup; byModel; withoutModel } from '../functions/channels'
include { readJson     } from '../functions/params'
include { ifRoom       } from '../functions/outdir'

workflow SPLIT {
    take:
    ch_input // [samplesheet or nothing, images, numbers of the missing ones, fingerprints]
    job // [models: [[path, fingerprint]], none or several, device, steps, schema, last, outdir, mode, options, code]

    main:
    // A model has a number only where there are several.
    several = job.models.size() > 1
    ch_models = several
        ? channel.fromList(job.models.withIndex(1).collect { model, number -> [number] + model })
        : job.models ? channel.value([0] + job.models[0]) : channel.empty()
    PACK_MODEL(ch_models, job.options.pack, job.code.pack_model)
    ch_packed = several ? PACK_MODEL.out.packed.toSortedList { one, other -> one[0] <=> other[0] } : PACK_MODEL.out.packed.map { model -> [model] }
    packed = job.models ? ch_packed.map { models -> models.collect { _number, folder -> folder } } : channel.value([])
    CHECK_INPUT(ch_input, packed, job.steps, job.schema, job.options.check, job.code.check_input)

    ch_roomy = CHECK_INPUT.out.samples
        .combine(CHECK_INPUT.out.estimate)
        .map { samples, estimate -> ifRoom(samples, job.outdir, job.mode, readJson(estimate).output_bytes) }
    // The file's values, not the file: after a change of one row the tasks of all others are still cached.
    ch_checked = job.last == 'check' ? channel.empty() : ch_roomy
    ch_batches = ch_checked
        .combine(ch_input)
        .flatMap { samples, _sheet, images, _missing, prints -> batches(readJson(samples), images, prints) }

    IMPORT_IMAGE(ch_batches, job.options.import_image, job.code.import_image)
    // A GPU is probed once per model, as soon as it is known that something will be predicted. All plans take what it finds.
    ch_probed = ch_batches
        .filter { meta, _entries, _images, _prints -> meta.start == 'predict' }
        .take(1)
        .combine(ch_packed.map { models -> [models] })
        .flatMap { _meta, _entries, _images, _prints, models -> models }
    PROBE_DEVICE(job.device == 'cuda' ? ch_probed : channel.empty(), job.options.probe, job.code.probe_device)
    // No plan before every probe: the prediction with one model would take memory that the probe of the next one looks for.
    ch_devices = job.device == 'cuda' ? PROBE_DEVICE.out.device.toList().flatMap { devices -> devices } : ch_packed.flatMap { models -> models.collect { member, _folder -> [member, []] } }

    ch_predicted = IMPORT_IMAGE.out.info
        .filter { meta, _infos -> meta.start == 'predict' }
        .combine(packed.map { packages -> [packages] })
        .flatMap { meta, infos, packages -> byModel(meta, packages).collect { own, folder -> [own.member ?: 0, own, infos, folder] } }
        .combine(ch_devices, by: 0)
        .map { _member, meta, infos, folder, probed -> [meta, infos, folder, probed] }
    PLAN_TILES(ch_predicted, job.options.plan, job.code.plan_tiles)

    // An image that is read in place has no store of its own: the image is it. It is one file, and given labels follow it.
    ch_images = IMPORT_IMAGE.out.info
        .join(IMPORT_IMAGE.out.store, remainder: true)
        .join(ch_batches.map { meta, _entries, images, prints -> [meta, images, prints] })
        .map { meta, infos, stores, images, prints -> [meta, infos, stores ?: images.take(1), stores ? [] : prints.take(1)] }

    // Several models are averaged on the grid of the first one.
    ch_grids = PLAN_TILES.out.grid
        .filter { meta, _grids, _rows -> !meta.member || meta.member == 1 }
        .map { meta, grids, rows -> [withoutModel(meta), grids, rows] }
        .mix(IMPORT_IMAGE.out.grid)
    ch_given = IMPORT_IMAGE.out.blocks.join(IMPORT_IMAGE.out.grid).flatMap { meta, blocks, _grids, rows -> byGroup(meta, blocks, rows) }
    ch_samples = CHECK_INPUT.out.samples
    ch_estimate = CHECK_INPUT.out.estimate
    ch_table = CHECK_INPUT.out.table
    ch_plans = PLAN_TILES.out.plan
    ch_files = IMPORT_IMAGE.out.info.map { _meta, infos -> infos }.mix(IMPORT_IMAGE.out.pictures)
    ch_records = PACK_MODEL.out.record.mix(CHECK_INPUT.out.record, IMPORT_IMAGE.out.record, PROBE_DEVICE.out.record, PLAN_TILES.out.record)

    emit:
    packed // the packages in the order of the models
    ch_samples
    ch_estimate
    ch_table // the estimate as text
    ch_images // [meta, infos, stores, fingerprints]
    ch_plans // [meta, plans, tiles, rows of blocks], of several models for each; meta then bears the model's number
    ch_grids // [meta, grids, rows of blocks]
    ch_given // [meta, group, blocks of the group]
    ch_files
    ch_records
}
