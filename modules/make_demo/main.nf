// Images for a first run, generated.
include { memoryFor; productOf; timeFor } from '../../functions/resources'

process MAKE_DEMO {
    label 'process_single'
    memory { memoryFor(1_000_000_000 + 32 * productOf(options), task) }
    time { timeFor(productOf(options) / 1e6, task) }

    input:
    val options
    val _code

    output:
    path 'demo/*.tif', emit: images

    script:
    """
    make_demo.py --out demo ${options}
    """

    stub:
    """
    mkdir -p demo
    touch demo/demo.ome.tif
    """
}
