// The last words of a run: where the report is, or what failed and what to do.

def closingText(run, outdir) {
    def report = file("${outdir}/report.html")
    def ignored = run.stats.ignoredCount > 0
    def lines = run.success || ignored
        ? ["Done in ${run.duration}${ignored ? ', without the samples that failed; the report names them' : ''}."]
        : ["Failed after ${run.duration}."] + failure(run.errorReport ?: '') + ['Mend it and run the same command again with -resume: finished work is kept.']
    def where = report.exists() && (run.success || ignored) ? ["Report: ${report}"] : []
    return (lines + where).join('\n')
}

// Nextflow's report of the first failed task -> the task, its own last words, and its folder.
def failure(text) {
    def task = text.find(/process > '([^']+)'/) { _all, name -> name }
    def folder = text.find(/(?s)Work dir:\s*(\S+)/) { _all, path -> path }
    if (!task) {
        return [text.readLines().find { line -> line.trim() } ?: 'See .nextflow.log.']
    }
    def log_file = folder ? file("${folder}/.command.err") : null
    def said = log_file?.exists() ? lastWords(log_file) : []
    return ["Task ${task}:"] + said.collect { line -> "  ${line}" } + (folder ? ["Its folder: ${folder}"] : [])
}

// The first faults of a script of ours, which come last in its log; of any other program the end of the log.
def lastWords(log_file) {
    def lines = log_file.readLines()
    def start = lines.findIndexOf { line -> line.startsWith('error:') }
    if (start < 0) {
        return lines.takeRight(12)
    }
    def rest = lines.size() - start - 120
    return lines.drop(start).take(120) + (rest > 0 ? ["... ${rest} more lines in ${log_file}"] : [])
}
