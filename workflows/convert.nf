// Any image into any other format, one task per sample or batch of small ones.
include { CHECK_INPUT    } from '../modules/check_input/main'
include { CONVERT_IMAGES } from '../modules/convert_images/main'
include { LIST_CONVERTED } from '../modules/list_converted/main'
include { NAME_SKIPPED   } from '../modules/name_skipped/main'
include { batches        } from '../functions/channels'
include { readJson       } from '../functions/params'
include { ifRoom         } from '../functions/outdir'

workflow CONVERT {
    take:
    ch_input // [samplesheet or nothing, images, numbers of the missing ones, fingerprints]
    job // [schema, last: check or convert, options, code]

    main:
    CHECK_INPUT(ch_input, channel.value([]), [], job.schema, job.options.check, job.code.check_input)

    ch_roomy = CHECK_INPUT.out.samples
        .combine(CHECK_INPUT.out.estimate)
        .map { samples, estimate -> ifRoom(samples, job.outdir, job.mode, readJson(estimate).output_bytes) }

    if (job.last != 'check') {
        // The file's values, not the file: after a change of one row the tasks of all others are still cached.
        ch_batches = ch_roomy
            .combine(ch_input)
            .flatMap { samples, _sheet, images, _missing, prints -> batches(readJson(samples), images, prints) }
        CONVERT_IMAGES(ch_batches, job.options.convert, job.code.convert_images)

        // In the order of their names, so that -resume stages them as before.
        ch_staged = CONVERT_IMAGES.out.info
            .mix(CONVERT_IMAGES.out.record)
            .flatten()
            .toSortedList { one, other -> one.name <=> other.name }
        LIST_CONVERTED(CHECK_INPUT.out.samples, ch_staged, job.options.list, job.code.list_converted)
    }

    NAME_SKIPPED(CHECK_INPUT.out.samples.map { samples -> readJson(samples).skipped.size() }.filter { number -> number > 0 })

    ch_table = CHECK_INPUT.out.table

    emit:
    ch_table // the estimate as text
}
