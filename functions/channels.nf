// How items are grouped on their way. A batch is [id, samples]; counts are those of the plan, never of arrival, so that
// -resume groups as before.

// samples.json, and the files (images and given labels) with their fingerprints in the order in which CHECK_INPUT numbered them
// -> per batch [meta, its samples as JSON, files of its samples, their fingerprints].
// Inside the batch files are numbered anew, so that a change of another row changes nothing here.
def batches(checked, images, prints) {
    return checked.samples.groupBy { sample -> sample.batch }.collect { id, samples ->
        def numbers = samples.collectMany { sample -> sample.images }
        def next = 1
        def entries = samples.collect { sample ->
            def own = (next..<next + sample.images.size()).toList()
            next += own.size()
            sample + [images: own]
        }
        [
            [id: id, samples: samples.collect { sample -> sample.id }, start: samples[0].start, needs: needsOf(samples, checked.estimate ?: [:])],
            groovy.json.JsonOutput.toJson(entries),
            numbers.collect { n -> images[n - 1] },
            numbers.collect { n -> prints[n - 1] },
        ]
    }
}

// What the tasks of a batch need, by process: the memory of its largest sample, the time of all of them. A sample without
// needs of its own is one task, and its need is the estimate.
def needsOf(samples, estimates) {
    def own = samples.collect { sample -> estimates[sample.id] ?: [:] }
    def every = own.collect { one -> one.needs ?: [whole: [memory: one.memory_bytes ?: 0, seconds: one.seconds ?: 0]] }
    return every.collectMany { needs -> needs.keySet().toList() }.unique().collectEntries { process ->
        def found = every.collect { needs -> needs[process] }.findAll { need -> need }
        [process, [memory: found.collect { need -> need.memory as long }.max(), seconds: found.collect { need -> need.seconds as double }.sum()]]
    }
}

// A batch for each of the packages -> [[meta, package]]. Where there are several, meta bears the number of the model.
def byModel(meta, packages) {
    return packages.size() == 1
        ? [[meta, packages[0]]]
        : packages.withIndex(1).collect { packed, number -> [meta + [member: number], packed] }
}

// The batch itself, whichever model this meta is about
def withoutModel(meta) {
    return meta.member ? meta.findAll { name, _value -> name != 'member' } : meta
}

// Name of a task about this meta, and the option that tells its script the model
def titleOf(meta) {
    return meta.member ? "${meta.id} model ${meta.member}" : meta.id
}

def memberFlag(meta) {
    return meta.member ? "--member ${meta.member}" : ''
}

// Part of the file names of a model's records and plans; without several models there is none
def memberMark(meta) {
    return meta.member ? "m${meta.member}." : ''
}

// tiles.csv -> [[task, what it needs]]
def predictionTasks(tiles) {
    return tiles.splitCsv(header: true).groupBy { row -> row.task as int }.collect { number, rows ->
        [
            number,
            [
                memory: rows.collect { row -> row.memory_bytes as long }.max(),
                threads: rows.collect { row -> row.threads as int }.max(),
                seconds: rows.collect { row -> row.seconds as long }.sum(),
            ],
        ]
    }
}

// blocks.csv -> its rows: which pieces are stitched together, and how many they are
def stitchRows(blocks) {
    return blocks.splitCsv(header: true).collect { row ->
        [sample: row.sample, block: row.block as int, group: row.group as int, n_pieces: row.n_pieces as int]
    }
}

// ch_pieces: [meta, files <sample>.t<tile>.b<block>.piece]; ch_blocks: [meta, sample, block, group, pieces of the group]
// -> [meta, group, pieces] as soon as every piece of the group's blocks is there.
def groupByStitch(ch_pieces, ch_blocks) {
    return ch_pieces
        .flatMap { meta, files -> [files].flatten().collect { file -> [meta] + sampleAndBlock(file.name) + [file] } }
        .combine(ch_blocks, by: [0, 1, 2])
        .map { meta, _sample, _block, file, group, n -> [groupKey([meta, group], n), file] }
        .groupTuple()
        .map { key, files -> key.getGroupTarget() + [files.sort { file -> file.name }] }
}

def sampleAndBlock(name) {
    def found = name =~ /^(.+)\.t\d+\.b(\d+)\.piece$/
    return [found[0][1], found[0][2] as int]
}

// Numbers of the groups that blocks.csv names
def groupsOf(rows) {
    return stitchRows(rows).collect { row -> row.group }.unique()
}

// Blocks of a whole batch -> per group [meta, group, its blocks]
def byGroup(meta, blocks, rows) {
    def named = [blocks].flatten().collectEntries { block -> [block.name, block] }
    return stitchRows(rows).groupBy { row -> row.group }.collect { group, members ->
        [meta, group, members.collect { row -> named["${row.sample}.b${row.block}.zarr".toString()] }]
    }
}

// The files <sample>.b<block>.* of these blocks
def ofBlocks(files, blocks) {
    def names = [blocks].flatten().collect { block -> block.name.replaceFirst(/\.zarr$/, '') }.toSet()
    return [files].flatten().findAll { file -> names.contains(file.name.replaceFirst(/\.[^.]+$/, '')) }
}

// Given instances are objects already; all others are made into some where that is asked for.
def hasObjects(meta, instances) {
    return meta.start == 'analyze' || instances != 'none'
}

// Objects that touch are separated before they are found, unless they are given.
def isSeparated(meta, instances) {
    return meta.start != 'analyze' && instances in ['border_core', 'watershed']
}

// measures.csv -> [[task, what it needs]]
def measureTasks(table) {
    return table.splitCsv(header: true).groupBy { row -> row.task as int }.collect { number, rows ->
        [number, [memory: rows.collect { row -> row.memory_bytes as long }.max()]]
    }
}

// Label stores, which all bear the same name, in the order of the batch's samples
def inOrder(meta, stores) {
    return [stores].flatten().sort { store -> meta.samples.indexOf(store.parent.name) }
}

// ch_parts: [meta, files of one part]; ch_counts: [batch, number of its parts] -> [meta, files of the whole batch]
def groupByBatch(ch_parts, ch_counts) {
    return ch_parts
        .map { meta, files -> [meta.id, meta, files] }
        .combine(ch_counts, by: 0)
        .map { id, meta, files, n -> [groupKey(id, n), meta, files] }
        .groupTuple()
        .map { _key, metas, files -> [metas[0], files.flatten().sort { file -> file.name }] }
}
