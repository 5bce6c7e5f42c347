// What a task asks for. At first what its data need: `needs` of bin/voxelmill/needs.py, which the estimate brings with the
// batch, or a figure by the size of its files. Tried again, it asks for what it had, or twice as much of what it lacked.

// `bytes` is null where nothing is known of the data.
// A task of this machine never asks for more than it has, or Nextflow would refuse to try it again.
def memoryFor(bytes, task) {
    if (!task.previousTrace) {
        return new nextflow.util.MemoryUnit((bytes ?: 4_000_000_000) as long)
    }
    def last = task.previousTrace.memory as long
    def asked = task.exitStatus in [134, 137, 139, 247, 2147483647] ? 2 * last : last
    def most = nextflow.util.SysHelper.getAvailMemory().toBytes()
    return new nextflow.util.MemoryUnit(task.executor == 'local' ? Math.max(last, Math.min(asked, most)) : asked)
}

// An hour, and four times the estimate: nodes differ, and so do the disks they share.
// Nothing ends a task on the user's own machine, which may be slow, busy or asleep.
def timeFor(seconds, task) {
    if (task.executor == 'local') {
        return null
    }
    def last = task.previousTrace?.time
    def first = 3600 + 4 * ((seconds ?: 0) as double)
    def asked = last ? (last as long) * (task.exitStatus in [140, 143] ? 2 : 1) : 1000 * Math.ceil(first / 60) * 60
    return new nextflow.util.Duration(asked as long)
}

// Bytes of all files; a folder counts as its entry on the disk.
def sizeOf(files) {
    return [files].flatten().collect { file -> file.size() as long }.sum(0L)
}

// Bytes of the largest checkpoint of a model, be it a folder or a zip
def largestCheckpoint(path) {
    def model = path.toRealPath()
    def sizes = [0L]
    if (model.isDirectory()) {
        model.eachFileRecurse { file -> sizes.add(file.name.endsWith('.pth') ? file.size() as long : 0L) }
    }
    else if (model.name.endsWith('.zip')) {
        def zip = new java.util.zip.ZipFile(model.toFile())
        zip.entries().each { entry -> sizes.add(entry.name.endsWith('.pth') ? entry.size : 0L) }
        zip.close()
    }
    return sizes.max()
}

// A script that is told a budget keeps to it, whatever its data would fill.
def budgeted(bytes, options) {
    def budget = options.find(/--memory-budget '(\d+)'/) { _all, number -> number }
    return [bytes, budget].findAll { number -> number }.collect { number -> number as long }.min()
}

// Product of the whole numbers among a script's options
def productOf(options) {
    return options.tokenize().findAll { word -> word.isInteger() }.collect { word -> word as long }.inject(1L) { product, number -> product * number }
}
