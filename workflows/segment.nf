// The main job: check, split, predict, assemble, analyze, report.
include { SPLIT        } from '../subworkflows/split'
include { PREDICT      } from '../subworkflows/predict'
include { ASSEMBLE     } from '../subworkflows/assemble'
include { ANALYZE      } from '../subworkflows/analyze'
include { BUILD_REPORT } from '../modules/build_report/main'
include { NAME_SKIPPED } from '../modules/name_skipped/main'
include { readJson     } from '../functions/params'

workflow SEGMENT {
    take:
    ch_input // [samplesheet or nothing, images, numbers of the missing ones, fingerprints]
    job // [model, schema, last: check, split, predict, assemble or analyze, instances, export, options, code, record]

    main:
    SPLIT(ch_input, job)
    ch_images = SPLIT.out.ch_images
    ch_grids = SPLIT.out.ch_grids
    ch_files = SPLIT.out.ch_files
    ch_records = SPLIT.out.ch_records

    if (!(job.last in ['check', 'split'])) {
        PREDICT(SPLIT.out.ch_plans, ch_images, SPLIT.out.packed, job.code)
        ASSEMBLE(PREDICT.out.ch_stitched.mix(SPLIT.out.ch_given), ch_grids, ch_images, job)
        ch_files = ch_files.mix(ASSEMBLE.out.ch_files)
        ch_records = ch_records.mix(PREDICT.out.ch_records, ASSEMBLE.out.ch_records)
    }

    if (job.last == 'analyze') {
        ANALYZE(ASSEMBLE.out.ch_stores, ASSEMBLE.out.ch_objects, ch_grids, ch_images, SPLIT.out.ch_samples, job)
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
