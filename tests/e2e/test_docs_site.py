"""The documentation site builds without a warning, and what its pages tell people to do works."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.doc_commands import ROOT, Block, World, blocks, pages

pytestmark = pytest.mark.e2e

SKIPPED = {
    r"pip |python3 -m venv|\. \S+/activate": "installs; CI's own first step is `pip install`",
    r"sudo ": "changes the machine; the units are verified below",
    r"docker |\S*OPENAI_API_BASE_URL=": "Open WebUI is not among the tests' dependencies",
    r"collm bench ": "takes minutes; tests/unit and tests/e2e run each on something small",
    r"collm build ": "the session's artifact is built so",
    r"collm tune my-model --tokens 1500000$": "takes an hour",
    r"collm (synthesize|tune|calibrate|eval|profile|plan) ": "the README's are run by its test",
    r"collm serve .*--host 172": "an address of Docker's bridge",
    r".*(…|bad-day\.txt|cloud:\d|server:\d)": "an abridged line, or one that needs three machines",
    r"llm -m |import litellm|from langchain_openai": "seconds of imports; the clients' tests do it",
}
FIRST = ("docs/tutorial.md", "docs/howto/tls.md")
"""They make the certificates and tokens that others use."""


def reason(block: Block) -> str | None:
    """Why it is not run."""
    found = (why for pattern, why in SKIPPED.items() if re.match(pattern, block.text))
    return next(found, None)


def to_run() -> dict[str, list[Block]]:
    """By page; what the README's test has run, or a page before, is not run again."""
    told = {block.text for block in blocks(ROOT / "README.md") if "serve" not in block.text}
    by_page: dict[str, list[Block]] = {}
    names = {page.relative_to(ROOT).as_posix(): page for page in pages()}
    for name in (*FIRST, *(name for name in names if name not in FIRST)):
        for block in blocks(names[name]):
            is_server = re.match(r"collm (cloud|serve|link) ", block.text)
            if reason(block) is None and (is_server or block.text not in told):
                by_page.setdefault(name, []).append(block)
                told.add(block.text)
    return by_page


TO_RUN = to_run()


@pytest.fixture(scope="module")
def world(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(smollm2, folder / "my-model")
    shutil.copytree(ROOT / "examples", folder / "examples")
    world = World(folder)
    try:
        yield world
    finally:
        world.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", TO_RUN)
def test_a_pages_commands_run_as_written(page: str, world: World) -> None:
    world.follow(TO_RUN[page])


def test_most_commands_are_run() -> None:
    assert sum(map(len, TO_RUN.values())) >= 40
    assert {"docs/tutorial.md", "docs/howto/clients.md", "docs/howto/python.md"} <= set(TO_RUN)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    built = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (built.returncode, built.stderr + built.stdout) == (0, "")
    for page in ("index", "tutorial", "howto/clients", "reference/commands", "reference/python"):
        assert (tmp_path / page.removesuffix("index") / "index.html").is_file()
    commands = (tmp_path / "reference/commands/index.html").read_text()
    assert "--kv-memory" in commands
    assert "<!-- generated" not in commands
    for html in tmp_path.rglob("*.html"):  # nothing is loaded from elsewhere
        tags = re.findall(r"<(?:script|img|iframe|link)\b[^>]*https?:[^>]*>", html.read_text())
        assert tags == [], html


def test_units_are_well_formed_and_their_options_exist() -> None:
    units = sorted((ROOT / "examples/systemd").glob("*.service"))
    assert len(units) == 2
    for unit in units:
        parsed = configparser.ConfigParser(strict=False, interpolation=None)
        parsed.optionxform = str  # type: ignore[assignment,method-assign]
        parsed.read(unit)
        started = parsed["Service"]["ExecStart"].split()
        assert started[0] == "/opt/collm/bin/collm"
        told = subprocess.run(
            [sys.executable, "-m", "collm", started[1], "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        options = {word for word in started if word.startswith("--")}
        assert options <= set(re.findall(r"--[a-z][a-z-]+", told)), unit.name
        assert parsed["Service"]["NoNewPrivileges"] == "yes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for unit in (ROOT / "examples/systemd").glob("*.service"):
        text = unit.read_text().replace("/opt/collm/bin/collm", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx")
@pytest.mark.parametrize("name", ["nginx-serve.conf", "nginx-cloud.conf"])
def test_nginx_takes_the_configuration(name: str, tmp_path: Path) -> None:
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-keyout",
         str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")],
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0
    text = (ROOT / "examples/proxy" / name).read_text()
    text = re.sub(r"(ssl_certificate_key\s+)\S+;", rf"\1{tmp_path}/key.pem;", text)
    text = re.sub(r"(ssl_certificate\s+)\S+;", rf"\1{tmp_path}/cert.pem;", text)
    whole = f"http {{\n{text}\n}}\n"
    if "stream {" in text:
        module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
        if not module.exists():
            pytest.skip("nginx has no stream module")
        whole = text
        load = f"load_module {module};\n"
    else:
        load = ""
    whole = f"{load}events {{}}\npid {tmp_path}/pid;\n{whole}"
    (tmp_path / "nginx.conf").write_text(whole)
    checked = subprocess.run(
        ["nginx", "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr


def test_the_http_page_names_every_route() -> None:
    """reference/http.md says what the application serves, and nothing else."""
    source = (ROOT / "src/collm/serve/openai/app.py").read_text()
    routes = re.findall(r"@router\.(get|post)\(\s*\"([^\"]+)\"", source)
    served = {f"{method.upper()} {path.replace(':path', '')}" for method, path in routes}
    page = (ROOT / "docs/reference/http.md").read_text()
    told = set(re.findall(r"^\| `((?:GET|POST) [^`]+)` \|", page, re.MULTILINE))
    assert told == served | {"GET /openapi.json", "GET /"}
