// Labels beside the truth: one task per sample or batch of small ones, then tables and a report of all.
include { CHECK_INPUT     } from '../modules/check_input/main'
include { EVALUATE_LABELS } from '../modules/evaluate_labels/main'
include { LIST_EVALUATED  } from '../modules/list_evaluated/main'
include { NAME_SKIPPED    } from '../modules/name_skipped/main'
include { batches         } from '../functions/channels'
include { readJson        } from '../functions/params'

workflow EVALUATE {
    take:
    ch_input // [samplesheet, images, labels and truths, numbers of the missing ones, fingerprints]
    job // [schema, last: check or evaluate, options, code, record]

    main:
    CHECK_INPUT(ch_input, channel.value([]), [], job.schema, job.options.check, job.code.check_input)

    if (job.last != 'check') {
        // The file's values, not the file: after a change of one row the tasks of all others are still cached.
        ch_batches = CHECK_INPUT.out.samples
            .combine(ch_input)
            .flatMap { samples, _sheet, images, _missing, prints -> batches(readJson(samples), images, prints) }
        EVALUATE_LABELS(ch_batches, job.options.evaluate, job.code.evaluate_labels)

        // In the order of their names, so that -resume stages them as before.
        ch_staged = EVALUATE_LABELS.out.info
            .mix(EVALUATE_LABELS.out.pictures, EVALUATE_LABELS.out.record)
            .flatten()
            .toSortedList { one, other -> one.name <=> other.name }
        LIST_EVALUATED(CHECK_INPUT.out.samples, ch_staged, job.record, job.options.list, job.code.list_evaluated)
    }

    NAME_SKIPPED(CHECK_INPUT.out.samples.map { samples -> readJson(samples).skipped.size() }.filter { number -> number > 0 })

    ch_table = CHECK_INPUT.out.table

    emit:
    ch_table // the estimate as text
}
