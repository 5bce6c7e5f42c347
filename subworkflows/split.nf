// Images and model -> what prediction needs, sample by sample or in batches of small ones; given labels -> blocks.
include { PACK_MODEL   } from '../modules/pack_model/main'
include { CHECK_INPUT  } from '../modules/check_input/main'
include { IMPORT_IMAGE } from '../modules/import_image/main'
include { PLAN_TILES   } from '../modules/plan_tiles/main'
include { batches; byGroup } from '../functions/channels'
include { readJson     } from '../functions/params'

workflow SPLIT {
    take:
    ch_input // [samplesheet or nothing, images, numbers of the missing ones, fingerprints]
    job // [model: [path, fingerprint] or nothing, schema, last, options, code]

    main:
    PACK_MODEL(job.model ? channel.value(job.model) : channel.empty(), job.options.pack, job.code.pack_model)
    packed = job.model ? PACK_MODEL.out.packed : channel.value([])
    CHECK_INPUT(ch_input, packed, job.schema, job.options.check, job.code.check_input)

    // The file's values, not the file: after a change of one row the tasks of all others are still cached.
    ch_checked = job.last == 'check' ? channel.empty() : CHECK_INPUT.out.samples
    ch_batches = ch_checked
        .combine(ch_input)
        .flatMap { samples, _sheet, images, _missing, prints -> batches(readJson(samples), images, prints) }

    IMPORT_IMAGE(ch_batches, job.options.import_image, job.code.import_image)
    ch_predicted = IMPORT_IMAGE.out.info.filter { meta, _infos -> meta.start == 'predict' }
    PLAN_TILES(ch_predicted, packed, job.options.plan, job.code.plan_tiles)

    // An image that is read in place has no store of its own: the image is it. It is one file, and given labels follow it.
    ch_images = IMPORT_IMAGE.out.info
        .join(IMPORT_IMAGE.out.store, remainder: true)
        .join(ch_batches.map { meta, _entries, images, prints -> [meta, images, prints] })
        .map { meta, infos, stores, images, prints -> [meta, infos, stores ?: images.take(1), stores ? [] : prints.take(1)] }

    ch_grids = PLAN_TILES.out.grid.mix(IMPORT_IMAGE.out.grid)
    ch_given = IMPORT_IMAGE.out.blocks.join(IMPORT_IMAGE.out.grid).flatMap { meta, blocks, _grids, rows -> byGroup(meta, blocks, rows) }
    ch_samples = CHECK_INPUT.out.samples
    ch_estimate = CHECK_INPUT.out.estimate
    ch_table = CHECK_INPUT.out.table
    ch_plans = PLAN_TILES.out.plan
    ch_files = IMPORT_IMAGE.out.info.map { _meta, infos -> infos }.mix(IMPORT_IMAGE.out.pictures)
    ch_records = PACK_MODEL.out.record.mix(CHECK_INPUT.out.record, IMPORT_IMAGE.out.record, PLAN_TILES.out.record)

    emit:
    packed // the package, or nothing
    ch_samples
    ch_estimate
    ch_table // the estimate as text
    ch_images // [meta, infos, stores, fingerprints]
    ch_plans // [meta, plans, tiles, rows of blocks]
    ch_grids // [meta, grids, rows of blocks]
    ch_given // [meta, group, blocks of the group]
    ch_files
    ch_records
}
