// The main job: check, split, predict, assemble, analyze, report.
include { SPLIT        } from '../subworkflows/split'
include { PREDICT      } from '../subworkflows/predict'
include { POSTPROCESS  } from '../subworkflows/postprocess'
include { ASSEMBLE     } from '../subworkflows/assemble'
include { ANALYZE      } from '../subworkflows/analyze'
include { SAVE_PATCHES } from '../modules/save_patches/main'
include { BUILD_REPORT } from '../modules/build_report/main'
include { NAME_SKIPPED } from '../modules/name_skipped/main'
include { withoutModel } from '../functions/channels'
include { readJson     } from '../functions/params'

workflow SEGMENT {
    take:
    ch_input // [samplesheet or nothing, images, numbers of the missing ones, fingerprints]
    job // [models, probabilities, postprocessing, steps, patches, schema, last: check, split, predict, assemble or analyze, outdir, mode, instances, export, options, code, record]

    main:
    SPLIT(ch_input, job)
    ch_images = SPLIT.out.ch_images
    ch_grids = SPLIT.out.ch_grids
    ch_files = SPLIT.out.ch_files
    ch_records = SPLIT.out.ch_records

    if (job.patches && job.last != 'check') {
        ch_tiled = SPLIT.out.ch_plans
            .filter { meta, _plans, _tiles, _rows -> !meta.member || meta.member == 1 }
            .map { meta, plans, _tiles, _rows -> [withoutModel(meta), plans] }
            .join(ch_images)
        SAVE_PATCHES(ch_tiled, job.options.patches, job.code.save_patches)
        ch_records = ch_records.mix(SAVE_PATCHES.out.record)
    }

    if (!(job.last in ['check', 'split'])) {
        PREDICT(SPLIT.out.ch_plans, ch_images, SPLIT.out.packed, job)
        ch_predicted = PREDICT.out.ch_stitched
        if (job.postprocessing) {
            POSTPROCESS(ch_predicted, ch_grids, SPLIT.out.packed, job)
            ch_predicted = POSTPROCESS.out.ch_processed
            ch_records = ch_records.mix(POSTPROCESS.out.ch_records)
        }
        ASSEMBLE(ch_predicted.mix(SPLIT.out.ch_given), ch_grids, ch_images, job)
        ch_files = ch_files.mix(ASSEMBLE.out.ch_files)
        ch_records = ch_records.mix(PREDICT.out.ch_records, ASSEMBLE.out.ch_records)
    }

    if (job.last == 'analyze') {
        ANALYZE(ASSEMBLE.out.ch_stores, ASSEMBLE.out.ch_objects, ch_grids, ASSEMBLE.out.ch_object_grids, ch_images, SPLIT.out.ch_samples, job)
        ch_files = ch_files.mix(ANALYZE.out.ch_files)
        ch_records = ch_records.mix(ANALYZE.out.ch_records)
    }

    if (job.last != 'check') {
        ch_staged = ch_files.mix(ch_records).flatten().collect()
        BUILD_REPORT(SPLIT.out.ch_samples, SPLIT.out.ch_estimate, ch_staged, SPLIT.out.packed, job.record, job.code.build_report)
    }

    NAME_SKIPPED(SPLIT.out.ch_samples.map { samples -> readJson(samples).skipped.size() }.filter { number -> number > 0 })

    ch_table = SPLIT.out.ch_table

    emit:
    ch_table // the estimate as text
}
