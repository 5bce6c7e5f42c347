// The main job: check, split, predict, report.
include { SPLIT        } from '../subworkflows/split'
include { PREDICT      } from '../subworkflows/predict'
include { BUILD_REPORT } from '../modules/build_report/main'
include { NAME_SKIPPED } from '../modules/name_skipped/main'
include { readJson     } from '../functions/params'

workflow SEGMENT {
    take:
    ch_input // [samplesheet or nothing, images, numbers of the missing ones, fingerprints]
    job // [model, schema, last: check, split or predict, options, code, record]

    main:
    SPLIT(ch_input, job)
    ch_files = SPLIT.out.ch_files
    ch_records = SPLIT.out.ch_records

    if (job.last == 'predict') {
        PREDICT(SPLIT.out.ch_plans, SPLIT.out.ch_packed, job.code)
        ch_files = ch_files.mix(PREDICT.out.ch_files)
        ch_records = ch_records.mix(PREDICT.out.ch_records)
    }

    if (job.last != 'check') {
        ch_staged = ch_files.mix(ch_records).flatten().collect()
        BUILD_REPORT(SPLIT.out.ch_samples, SPLIT.out.ch_estimate, ch_staged, SPLIT.out.ch_packed, job.record, job.code.build_report)
    }

    NAME_SKIPPED(SPLIT.out.ch_samples.map { samples -> readJson(samples).skipped.size() }.filter { number -> number > 0 })

    ch_table = SPLIT.out.ch_table

    emit:
    ch_table // the estimate as text
}
