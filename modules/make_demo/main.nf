// Images for a first run, generated.
process MAKE_DEMO {
    label 'process_single'

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
