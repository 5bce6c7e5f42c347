// Images and model -> what prediction needs, sample by sample or in batches of small ones.
include { PACK_MODEL   } from '../modules/pack_model/main'
include { CHECK_INPUT  } from '../modules/check_input/main'
include { IMPORT_IMAGE } from '../modules/import_image/main'
include { PLAN_TILES   } from '../modules/plan_tiles/main'
include { batches      } from '../functions/channels'
include { readJson     } from '../functions/params'

workflow SPLIT {
    take:
    ch_input // [samplesheet or nothing, images, numbers of the missing ones, fingerprints]
    job // [model: [path, fingerprint], schema, last, options, code]

    main:
    PACK_MODEL(job.model, job.options.pack, job.code.pack_model)
    CHECK_INPUT(ch_input, PACK_MODEL.out.packed, job.schema, job.options.check, job.code.check_input)

    // The file's values, not the file: after a change of one row the tasks of all others are still cached.
    ch_checked = job.last == 'check' ? channel.empty() : CHECK_INPUT.out.samples
    ch_batches = ch_checked
        .combine(ch_input)
        .flatMap { samples, _sheet, images, _missing, prints -> batches(readJson(samples), images, prints) }

    IMPORT_IMAGE(ch_batches, job.code.import_image)
    PLAN_TILES(IMPORT_IMAGE.out.info, PACK_MODEL.out.packed, job.options.plan, job.code.plan_tiles)

    // An image that is read in place has no store of its own: the image is it.
    ch_stores = IMPORT_IMAGE.out.info
        .join(IMPORT_IMAGE.out.store, remainder: true)
        .join(ch_batches.map { meta, _entries, images, prints -> [meta, images, prints] })
        .map { meta, infos, stores, images, prints -> [meta, infos, stores ?: images, stores ? [] : prints] }

    ch_packed = PACK_MODEL.out.packed
    ch_samples = CHECK_INPUT.out.samples
    ch_estimate = CHECK_INPUT.out.estimate
    ch_table = CHECK_INPUT.out.table
    ch_plans = PLAN_TILES.out.plan.join(ch_stores)
    ch_files = IMPORT_IMAGE.out.info.map { _meta, infos -> infos }.mix(IMPORT_IMAGE.out.pictures)
    ch_records = PACK_MODEL.out.record.mix(CHECK_INPUT.out.record, IMPORT_IMAGE.out.record, PLAN_TILES.out.record)

    emit:
    ch_packed
    ch_samples
    ch_estimate
    ch_table // the estimate as text
    ch_plans // [meta, plans, tiles, blocks, infos, stores, fingerprints]
    ch_files
    ch_records
}
