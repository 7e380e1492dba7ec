"""The house rules: notebooks import only downwards, statistics load no torch, and the style keeps its limits.

A rule takes a notebook and yields (cell, complaint); a complaint says what to do. Every rule is itself tested on a bad notebook.
"""
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGE = "fusion_nb"
WITHOUT_TORCH = {*range(50, 70), 75, 76, 77}  # numbers of the notebooks that work on the prediction table alone
MACHINE_PATH = re.compile(r"(?<![\w./~-])/(?:work|tmp|root|home|Users)(?![\w-])")
MOST_LINES, MOST_BODY, MOST_PARAMETERS, MOST_CELLS, MOST_NAMES = 40, 45, 7, 60, 10
NEAR = 2  # an example stands within so many code cells


@dataclass(frozen=True)
class Cell:
    """One cell: `position` counts from 1, as a person does."""
    position: int
    kind: str
    source: str
    outputs: tuple = ()

    @cached_property
    def code(self) -> str:
        """The Python of a code cell; directives and magics become empty lines."""
        return "" if self.kind != "code" or self.source.startswith("%%") else re.sub(r"(?m)^(#\||%|!).*$", "", self.source)

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.code)

    @property
    def exported(self) -> bool:
        return self.kind == "code" and bool(re.search(r"(?m)^#\|\s*export", self.source))

    @cached_property
    def commented(self) -> set:
        """The lines that have a comment."""
        return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(self.code).readline) if t.type == tokenize.COMMENT}

    @property
    def shown(self) -> str:
        """All text of the stored outputs."""
        def text(value):
            return "".join(map(str, value)) if isinstance(value, list) else str(value)
        return "\n".join(text(o.get("text", "")) + "\n".join(text(v) for k, v in o.get("data", {}).items() if k.startswith("text/"))
                         for o in self.outputs)

    def __str__(self) -> str:
        first = next((line for line in self.code.splitlines() if line.strip()), self.source.split("\n")[0])
        return f"cell {self.position} ({first.strip()[:50]})"


@dataclass(frozen=True, repr=False)
class Notebook:
    """A notebook's file and its cells."""
    path: Path
    cells: tuple

    def __repr__(self) -> str:
        return self.path.name

    @classmethod
    def read(cls, path: Path) -> "Notebook":
        raw = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return cls(path, tuple(Cell(i, c["cell_type"], "".join(c["source"]), tuple(c.get("outputs", ()))) for i, c in enumerate(raw, 1)))

    @property
    def number(self) -> int:
        return int(self.path.name[:2])

    @property
    def modules(self) -> list:
        """What `#| default_exp` names; one, if all is well."""
        return [m for c in self.code_cells for m in re.findall(r"(?m)^#\|\s*default_exp\s+(\S+)", c.source)]

    @property
    def code_cells(self) -> list:
        return [c for c in self.cells if c.kind == "code"]

    @property
    def exported(self) -> list:
        return [c for c in self.cells if c.exported]


def notebooks(folder: Path = REPO / "nbs") -> list[Notebook]:
    """All notebooks below `folder`."""
    skip = {".ipynb_checkpoints", "_proc"}
    return [Notebook.read(p) for p in sorted(folder.rglob("*.ipynb")) if not skip & set(p.relative_to(folder).parts)]


ALL = notebooks()
LIBRARY = [nb for nb in ALL if re.match(r"\d\d_", nb.path.name)]
NUMBERS = {module: nb.number for nb in LIBRARY for module in nb.modules}


# ---- what the syntax tree says

def our_imports(tree: ast.Module, module: str = "") -> list[tuple[int, str]]:
    """(line, module of ours) of every import, wherever it stands; a relative one is seen from `module`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, a.name) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = [PACKAGE, *module.split(".")][:-node.level]
                base = ".".join([*parents, *filter(None, [base])])
            # `from fusion_nb import x` and `from fusion_nb.data import x` name modules, `from fusion_nb.x import f` does not
            found += [(node.lineno, f"{base}.{a.name}" if f"{base}.{a.name}".removeprefix(f"{PACKAGE}.") in NUMBERS else base)
                      for a in node.names]
    return [(line, name.removeprefix(f"{PACKAGE}.")) for line, name in found if name.split(".")[0] == PACKAGE and name != PACKAGE]


def definitions(nb: Notebook):
    """(cell, node) of every public function and class that is exported."""
    for cell in nb.exported:
        for node in cell.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                yield cell, node


def functions(nb: Notebook):
    """(cell, node) of every exported function and method; one inside a function is part of that function."""
    for cell in nb.exported:
        for node in cell.tree.body:
            for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield cell, inner


def body_lines(cell: Cell, node: ast.FunctionDef) -> int:
    """Lines of code in the body, without docstring, comments and empty lines."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    lines = cell.code.splitlines()[body[0].lineno - 1:node.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


def parameters(node: ast.FunctionDef) -> list[ast.arg]:
    """All parameters but self and cls."""
    a = node.args
    every = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
    return [p for p in every if p.arg not in ("self", "cls")]


def assigned(node: ast.stmt) -> list[str]:
    """Names that a top-level statement assigns."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, (ast.AnnAssign, ast.AugAssign)) else []
    return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]


# ---- rules of every notebook

def has_title_and_subtitle(nb):
    first = nb.cells[0]
    if first.kind != "markdown" or not re.match(r"# \S.*\n\n> \S", first.source):
        yield first, "begin with a markdown cell '# Title', an empty line, '> one-line subtitle.'"


def has_no_star_imports(nb):
    for cell in nb.code_cells:
        if any(isinstance(n, ast.ImportFrom) and n.names[0].name == "*" for n in ast.walk(cell.tree)):
            yield cell, "import the names that are used, not *"


def names_no_path_of_a_machine(nb):
    for cell in nb.cells:
        for where, text in (("source", cell.source), ("output", cell.shown)):
            for hit in MACHINE_PATH.findall(text):
                yield cell, f"its {where} names {hit!r}: use a temporary or relative folder, and print no more than its name"


def has_clean_outputs(nb):
    for cell in nb.code_cells:
        if any(o["output_type"] == "error" for o in cell.outputs):
            yield cell, "the stored output is an error: correct it and run the notebook again"
        if re.search(r"Warning: |%\|", cell.shown):
            yield cell, "the stored output has a warning or a progress bar: remove its cause (progress=False)"
        if re.search(r"\b0x[0-9a-f]{6,}", cell.shown):
            yield cell, "the stored output has a memory address, which changes with every run: show something else"


# ---- rules of the library

def imports_only_from_lower_numbers(nb):
    for cell in nb.code_cells:
        for module in sorted({module for _, module in our_imports(cell.tree)}):
            if module not in NUMBERS:
                yield cell, f"imports {module!r}, which no notebook exports"
            elif NUMBERS[module] >= nb.number:
                yield cell, f"imports {module!r} of notebook {NUMBERS[module]}: import from lower numbers only, or move the code down"


def keeps_imports_in_cells_of_their_own(nb):
    for cell in nb.code_cells:
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in cell.tree.body}
        if len(kinds) == 2:
            yield cell, "move the imports into a cell of their own (nbdev runs every cell with an import when it makes the pages)"


def exports_short_cells(nb):
    for cell in nb.exported:
        n = len(re.sub(r"(?m)^#\|.*\n?", "", cell.source).strip().splitlines())
        if n > MOST_LINES:
            yield cell, f"exports {n} lines: split it into cells of one idea and at most {MOST_LINES} lines"


def exports_short_functions(nb):
    for cell, node in functions(nb):
        if (n := body_lines(cell, node)) > MOST_BODY:
            yield cell, f"{node.name} has {n} lines: at most {MOST_BODY}, and most have seven"


def exports_functions_of_few_parameters(nb):
    for cell, node in functions(nb):
        if (n := len(parameters(node))) > MOST_PARAMETERS:
            yield cell, f"{node.name} has {n} parameters: at most {MOST_PARAMETERS}; bundle those that belong together"


def has_few_cells_and_names(nb):
    names = [node.name for _, node in definitions(nb)]
    names += [n for c in nb.exported for node in c.tree.body for n in assigned(node) if not n.startswith("_")]
    if len(nb.cells) > MOST_CELLS:
        yield nb.cells[-1], f"{len(nb.cells)} cells: at most {MOST_CELLS}; split the notebook"
    if len(names) > MOST_NAMES:
        yield nb.cells[0], f"{len(names)} public names ({', '.join(names)}): at most {MOST_NAMES}; give helpers an underscore or split"


def does_no_work_at_import(nb):
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in nb.exported:
        for node in cell.tree.body:
            names = assigned(node)
            if not isinstance(node, allowed) and not (names and all(re.fullmatch(r"_?[A-Z][A-Z0-9_]*", n) for n in names)):
                yield cell, f"exports a statement ({ast.unparse(node)[:50]}): only imports, functions, classes and UPPER_CASE constants"


def documents_public_names(nb):
    for cell, node in definitions(nb):
        if not ast.get_docstring(node):
            yield cell, f"{node.name} has no docstring"
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for field in (m for m in members if isinstance(m, ast.AnnAssign) and m.end_lineno not in cell.commented):
            yield cell, f"{node.name}.{ast.unparse(field.target)} has no comment that says what it is (shape, unit)"
        for function in (m for m in members if isinstance(m, ast.FunctionDef) and (m.name == "__init__" or not m.name.startswith("_"))):
            lines = [p.lineno for p in parameters(function)]
            bare = [p.arg for p in parameters(function) if p.lineno not in cell.commented or lines.count(p.lineno) > 1]
            if bare:
                yield cell, f"{function.name}: put {', '.join(bare)} on a line each, with a comment that says what it is (shape, unit)"
            if (r := function.returns) and ast.unparse(r) != "None" and r.end_lineno not in cell.commented:
                yield cell, f"{function.name} needs a comment that says what it returns"


def shows_public_names(nb):
    imports = (ast.Import, ast.ImportFrom)
    code = [c for c in nb.code_cells if c.exported or not all(isinstance(n, imports) for n in c.tree.body)]
    statements = [n for c in nb.exported for n in c.tree.body]
    for cell, node in definitions(nb):
        # a result or base class is also shown by an example of the function, class or constant that speaks of it
        users = [n for n in statements if re.search(rf"\b{node.name}\b", ast.unparse(n))]
        names = {name for n in users for name in [*assigned(n), getattr(n, "name", node.name)]}
        examples = [c.code for c in code[code.index(cell) + 1:][:NEAR] if not c.exported and "eval: false" not in c.source]
        if not re.search(rf"\b({'|'.join(names)})\b", "\n".join(examples)):
            yield cell, f"use {node.name} in an example or assert within the next {NEAR} code cells"


EVERYWHERE = [has_title_and_subtitle, has_no_star_imports, names_no_path_of_a_machine, has_clean_outputs]
IN_LIBRARY = [imports_only_from_lower_numbers, keeps_imports_in_cells_of_their_own, exports_short_cells, exports_short_functions,
              exports_functions_of_few_parameters, has_few_cells_and_names, does_no_work_at_import, documents_public_names,
              shows_public_names]


def check(nb, rule):
    complaints = [f"{nb.path.relative_to(REPO)}, {cell}: {text}" for cell, text in rule(nb)]
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.mark.parametrize("nb", ALL, ids=lambda nb: nb.path.stem)
@pytest.mark.parametrize("rule", EVERYWHERE, ids=lambda rule: rule.__name__)
def test_every_notebook(nb, rule):
    check(nb, rule)


@pytest.mark.parametrize("nb", LIBRARY, ids=lambda nb: nb.path.stem)
@pytest.mark.parametrize("rule", IN_LIBRARY, ids=lambda rule: rule.__name__)
def test_library_notebook(nb, rule):
    check(nb, rule)


# ---- rules of the whole

def test_most_functions_are_short():
    sizes = sorted(((body_lines(c, f), f"{nb.path.name}, {c}: {f.name}") for nb in LIBRARY for c, f in functions(nb)), reverse=True)
    lines = [n for n, _ in sizes]
    longest = "\n".join(f"{n} lines: {where}" for n, where in sizes[:15])
    assert np.median(lines) <= 7, f"half of the {len(lines)} functions have more than 7 lines; the longest:\n{longest}"
    assert np.percentile(lines, 90) <= 20, f"a tenth of the {len(lines)} functions have more than 20 lines; the longest:\n{longest}"


def test_every_module_belongs_to_a_notebook_and_every_notebook_to_a_module():
    for nb in LIBRARY:
        assert len(nb.modules) == 1, f"{nb.path.name}: needs exactly one '#| default_exp module', has {nb.modules}"
        expected = nb.path.stem[3:]
        assert nb.modules[0].replace(".", "_") == expected, f"{nb.path.name} exports {nb.modules[0]!r}: name the file after its module"
    assert len(NUMBERS) == len(LIBRARY), "two notebooks export the same module: " + str(sorted(m for nb in LIBRARY for m in nb.modules))
    files = {str(p.relative_to(REPO / PACKAGE).with_suffix("")).replace("/", ".") for p in (REPO / PACKAGE).rglob("*.py")
             if p.name not in ("__init__.py", "_modidx.py")}
    assert not files - set(NUMBERS), f"delete from {PACKAGE}/ what no notebook exports any more: {sorted(files - set(NUMBERS))}"
    assert not set(NUMBERS) - files, f"run nbdev_export: {sorted(set(NUMBERS) - files)} was not exported"


@pytest.mark.parametrize("nb", LIBRARY, ids=lambda nb: nb.path.stem)
def test_exported_module_imports_only_from_lower_numbers(nb):
    path = REPO / PACKAGE / (nb.modules[0].replace(".", "/") + ".py")
    wrong = [f"{path.relative_to(REPO)}, line {line}: imports {module!r} ({NUMBERS.get(module, 'of no notebook')}): only from below {nb.number}"
             for line, module in our_imports(ast.parse(path.read_text(encoding="utf-8")), nb.modules[0])
             if NUMBERS.get(module, 100) >= nb.number]
    assert not wrong, "\n".join(wrong)


def test_statistics_load_no_torch():
    statistics = [nb for nb in LIBRARY if nb.number in WITHOUT_TORCH]
    assert statistics, "no notebook numbered 50 to 59: were the statistics renumbered?"
    for cell in (c for nb in statistics for c in nb.exported):  # one inside a function is loaded only when that is called
        assert not re.search(r"(?m)^\s*(import|from) torch", cell.code), f"{cell} imports torch: statistics do without"
    modules = [f"{PACKAGE}.{nb.modules[0]}" for nb in statistics]
    program = ("import importlib, sys\nfor module in sys.argv[1:]:\n    importlib.import_module(module)\n"
               "    if 'torch' in sys.modules: sys.exit(f'{module} loads torch: statistics work on the prediction table alone')")
    done = subprocess.run([sys.executable, "-c", program, *modules], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_file_names_a_path_of_a_machine():
    folders = [REPO / f for f in (PACKAGE, "nbs", "tests", ".ci", ".github")]
    files = [p for p in [*REPO.iterdir(), *(p for f in folders for p in f.rglob("*"))]
             if p.is_file() and p.suffix in {".py", ".md", ".yml", ".yaml", ".ini", ".txt", ".toml", ".json", ""}]
    hits = [f"{p.relative_to(REPO)}, line {i}: {line.strip()[:90]}" for p in files
            for i, line in enumerate(p.read_text(encoding="utf-8", errors="replace").splitlines(), 1) if MACHINE_PATH.search(line)]
    assert not hits, "\n".join(["use relative paths, tmp_path or an environment variable:", *hits])


# ---- the rules bite

def made(*sources, name="55_bad.ipynb", outputs=()):
    """A notebook of these cells; those that begin with '# ' and a capital letter are markdown."""
    kinds = ["markdown" if re.match(r"# [A-Z]", s) else "code" for s in sources]
    return Notebook(REPO / "nbs" / name, tuple(Cell(i, k, s, outputs if k == "code" else ()) for i, (k, s) in enumerate(zip(kinds, sources), 1)))


GOOD = made("# Title\n\n> Subtitle.", "#| default_exp bad", "#| export\nfrom fusion_nb.schema import DataError",
            '#| export\ndef f(\n    x: int, # a number\n) -> int: # the next one\n    "One more."\n    return x + 1', "assert f(1) == 2")
LONG = "\n".join("    x = 1" for _ in range(46))


@pytest.mark.parametrize("rule", EVERYWHERE + IN_LIBRARY, ids=lambda rule: rule.__name__)
def test_a_good_notebook_passes(rule):
    check(GOOD, rule)


@pytest.mark.parametrize("rule, nb", [
    (has_title_and_subtitle, made("# Title", "x = 1")),
    (has_title_and_subtitle, made("x = 1")),
    (has_no_star_imports, made("from numpy import *")),
    (names_no_path_of_a_machine, made("folder = '/" + "work/x'")),
    (names_no_path_of_a_machine, made("x", outputs=({"output_type": "stream", "text": ["in /" + "tmp/abc\n"]},))),
    (has_clean_outputs, made("x", outputs=({"output_type": "error"},))),
    (has_clean_outputs, made("x", outputs=({"output_type": "stream", "text": " 50%|###  | 1/2"},))),
    (has_clean_outputs, made("x", outputs=({"output_type": "execute_result", "data": {"text/plain": "<f at 0x7f3a1b2c>"}},))),
    (imports_only_from_lower_numbers, made("from fusion_nb.schema import x", name="00_bad.ipynb")),
    (imports_only_from_lower_numbers, made("import fusion_nb.splits as s", name="10_bad.ipynb")),
    (imports_only_from_lower_numbers, made("def f():\n    from fusion_nb import splits", name="20_bad.ipynb")),
    (imports_only_from_lower_numbers, made("from fusion_nb.nowhere import x")),
    (keeps_imports_in_cells_of_their_own, made("import json\nx = 1")),
    (exports_short_cells, made("#| export\ndef f():\n" + LONG)),
    (exports_short_functions, made("#| export\nclass A:\n  def f():\n" + LONG)),
    (exports_functions_of_few_parameters, made("#| export\ndef f(a, b, c, d, *, e, f, g, **h): pass")),
    (has_few_cells_and_names, made(*["x"] * 61)),
    (has_few_cells_and_names, made(*[f"#| export\nN{i} = 1" for i in range(11)])),
    (does_no_work_at_import, made("#| export\nprint(1)")),
    (does_no_work_at_import, made("#| export\ncache = {}")),
    (documents_public_names, made("#| export\ndef f(): return 1")),
    (documents_public_names, made('#| export\ndef f(a, b): # two\n    "Doc."')),
    (documents_public_names, made('#| export\ndef f() -> int:\n    "Doc."')),
    (documents_public_names, made('#| export\nclass A:\n    "Doc."\n    x: int')),
    (shows_public_names, made("#| export\ndef f(): pass", "1", "2", "f()")),
    (shows_public_names, made("#| export\ndef f(): pass", "#| export\nf()")),
    (shows_public_names, made("#| export\nclass A: pass", "#| export\ndef f(): return A()", "g()")),
    (shows_public_names, made("#| export\ndef f(): pass", "#| eval: false\nf()")),
])
def test_a_bad_notebook_is_named(rule, nb):
    with pytest.raises(pytest.fail.Exception, match=rf"nbs/{nb.path.name}, cell \d+ \("):
        check(nb, rule)


def test_imports_are_resolved_as_python_does():
    def seen(code, module):
        return [m for _, m in our_imports(ast.parse(code), module)]
    assert seen("from .schema import DataError", "splits") == ["schema"]
    assert seen("from ..schema import DataError", "data.images") == ["schema"]
    assert seen("from . import schema", "splits") == ["schema"]
    assert seen("import fusion_nb.schema\nimport numpy", "splits") == ["schema"]
    assert seen("from fusion_nb import schema, splits", "x") == ["schema", "splits"]
    assert seen("import fusion_nb", "x") == []
