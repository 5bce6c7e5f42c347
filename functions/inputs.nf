// What --input names. Only names are read here: opening the images is CHECK_INPUT's work, in a task.
include { fingerprint } from './digests'

// A samplesheet, one image, a folder or a glob; with `stack` a folder is one image whose slices are its files
// -> [sheet: path or null, images: paths in the order in which CHECK_INPUT numbers them, from 1]; columns of a samplesheet
// beside `image` that name files
def readInput(text, stack, columns) {
    refuseControlCharacters([text])
    def input = file(text, glob: false)
    if (!input.exists()) {
        def found = [file(text, type: 'any')].flatten()
        return [sheet: null, images: stack ? namedStacks(found, text) : namedImages(found, text)]
    }
    if (input.name.toLowerCase().endsWith('.csv')) {
        return [sheet: input, images: sheetImages(input, columns)]
    }
    if (stack) {
        return [sheet: null, images: namedStacks([input.toAbsolutePath().normalize()], text)]
    }
    if (input.isDirectory() && !isZarr(input)) {
        return [sheet: null, images: namedImages(input.listFiles().toList(), text)]
    }
    refuseControlCharacters([input.name])
    return [sheet: null, images: [input]]
}

// Image files among others, in name order; what is no image by its name is left aside aloud.
def namedImages(found, text) {
    def visible = visibleOf(found)
    def images = visible.findAll { path -> isImage(path) }
    if (!images && visible && visible.every { path -> path.isDirectory() }) {
        error("""--input: ${text} holds folders and no image: ${fewNames(visible)}
            |If each of them is one image, a stack of slices: --input '${text}/*' --stack. If they hold images: --input '${text}/*/*'""".stripMargin())
    }
    return chosenOf(visible, images, text)
}

// Folders of slices among others, in name order.
def namedStacks(found, text) {
    def visible = visibleOf(found)
    def stacks = visible.findAll { path -> isStack(path) }
    if (!stacks && visible) {
        def inside = visible.any { path -> path.isDirectory() && visibleOf(path.listFiles().toList()).any { inner -> inner.isDirectory() } }
        error("""--input: with --stack ${text} must name a folder whose files are the slices of one image, and there is no such file in ${fewNames(visible)}
            |${inside ? "For one image per folder inside: --input '${text}/*' --stack" : 'Leave out --stack for images that are files.'}""".stripMargin())
    }
    return chosenOf(visible, stacks, text)
}

def visibleOf(found) {
    def visible = found.findAll { path -> path.exists() && !path.name.startsWith('.') }.sort { path -> path.name }
    refuseControlCharacters(visible.collect { path -> path.name })
    return visible
}

def chosenOf(visible, images, text) {
    def others = visible - images
    if (!images) {
        error("--input: nothing like an image at ${text}${others ? ' (found ' + fewNames(others) + ')' : ''}")
    }
    if (others) {
        log.warn("--input: not taken for images: ${others.collect { path -> path.name }.join(', ')}")
    }
    return images
}

def fewNames(paths) {
    return paths.take(5).collect { path -> path.name }.join(', ') + (paths.size() > 5 ? ', ...' : '')
}

def isImage(path) {
    return path.isDirectory() ? isZarr(path) : path.name ==~ /(?i).+\.(tiff?|btf|tf[28]|nii|nii\.gz|mh[ad]|nrrd|nhdr|png|jpe?g|h5|hdf5)/
}

// A folder that is no Zarr image and holds a file that could be a slice.
def isStack(path) {
    return path.isDirectory() && !isZarr(path) && visibleOf(path.listFiles().toList()).any { file -> isImage(file) && !file.isDirectory() }
}

def isZarr(path) {
    return path.isDirectory() && ['zarr.json', '.zgroup', '.zarray'].any { name -> path.resolve(name).exists() }
}

// Files of all rows, row by row: the images in the order of their ';' list, then those of the columns. Relative paths start at
// the sheet.
def sheetImages(sheet, columns) {
    def rows = sheetRows(sheet)
    refuseIds(rows.collect { row -> cell(row, 'sample') })
    def names = rows.collectMany { row ->
        (cell(row, 'image').tokenize(';').collect { name -> trimmed(name) } + columns.collect { name -> cell(row, name) }).findAll { name -> name }
    }
    refuseControlCharacters(names)
    return names.collect { name -> name.contains('://') ? file(name, glob: false) : sheet.toAbsolutePath().parent.resolve(name) }
}

def sheetRows(sheet) {
    try {
        return sheet.splitCsv(header: true, quote: '"')
    }
    catch (Exception e) {
        error("--input: ${sheet.name} cannot be read as a samplesheet: ${e.message}")
    }
}

// Spreadsheets put a byte order mark before the first column's name.
def cell(row, name) {
    return trimmed(row.find { key, _value -> trimmed(key.replace('\uFEFF', '')) == name }?.value ?: '')
}

def trimmed(text) {
    return text.replaceAll(/(?U)^\s+|\s+$/, '')
}

// The path that a param names, which must be there.
def existing(name, text) {
    refuseControlCharacters([text])
    def path = file(text, glob: false)
    if (!path.exists()) {
        error("--${name}: nothing at ${text}")
    }
    return path
}

// A line break in a file name would end up as a line of a task's script, an odd id as a part of a path.
def refuseControlCharacters(names) {
    def bad = names.findAll { name -> name =~ /\p{Cntrl}/ }
    if (bad) {
        error("Control characters in a name, which is refused for security: ${bad.collect { name -> printable(name) }.join(', ')}")
    }
}

def refuseIds(ids) {
    def bad = ids.findAll { id -> id && !(id ==~ /[A-Za-z0-9][A-Za-z0-9._-]{0,63}/) }
    if (bad) {
        error("""Sample ids must start with a letter or digit and go on with letters, digits, '.', '_' or '-', 64 at most.
            |Not so: ${bad.collect { id -> "'${printable(id)}'" }.join(', ')}""".stripMargin())
    }
}

def printable(name) {
    return name.replaceAll(/\p{Cntrl}/) { character -> String.format('\\x%02x', character.codePointAt(0)) }
}

// -> what one task of CHECK_INPUT takes: [samplesheet or nothing, images, numbers of the images that do not exist,
// fingerprints of the images that are folders]. A missing image keeps its number: the samplesheet stands in for it.
def inputTuple(input) {
    def missing = input.images.indexed(1).findAll { _number, path -> !path.exists() }.keySet().toList()
    def staged = input.images.collect { path -> path.exists() ? path : input.sheet }
    return [input.sheet ?: [], staged, missing, input.images.collect { path -> fingerprint(path) }]
}
