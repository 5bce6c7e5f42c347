// Pieces of a group of blocks -> finished labels of those blocks, and the probabilities behind them where they are wanted.
include { titleOf; memberFlag; memberMark } from '../../functions/channels'
include { memoryFor; timeFor } from '../../functions/resources'

process STITCH_BLOCKS {
    tag "${titleOf(meta)} ${group}"
    label 'process_single'
    memory { memoryFor(meta.needs?.stitch_blocks?.memory, task) }
    time { timeFor(meta.needs?.stitch_blocks?.seconds, task) }

    input:
    tuple val(meta), val(group), path(pieces), path(plans), path(blocks)
    val _code

    output:
    tuple val(meta), val(group), path('*/*.b*[0-9].zarr'), emit: blocks
    tuple val(meta), path('*/*.b*.probabilities.zarr'), emit: probabilities, optional: true
    path "${meta.id}/${meta.id}.stitch_blocks.${memberMark(meta)}${group}.json", emit: record

    script:
    """
    stitch_blocks.py --batch ${meta.id} ${memberFlag(meta)} --group ${group}
    """

    stub:
    """
    for sample in ${meta.samples.join(' ')}; do
        mkdir -p \$sample/\$sample.b${group}.zarr \$sample/\$sample.${memberMark(meta)}b${group}.probabilities.zarr
    done
    mkdir -p ${meta.id}
    touch ${meta.id}/${meta.id}.stitch_blocks.${memberMark(meta)}${group}.json
    """
}
