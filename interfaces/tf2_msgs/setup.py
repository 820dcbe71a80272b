"""Build tf2_msgs/msg/TFMessage against the ROS 2 wheels of PyPI.

The generators come from those wheels; a C and a C++ compiler and the Python headers come from the
system. The result has the layout of the wheels: libraries in <prefix>/lib, interface files in
<prefix>/share, the Python modules in site-packages.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

PACKAGE = "tf2_msgs"
MESSAGE = "msg/TFMessage"
TYPE_HASH = "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087"
IDL = Path(__file__).resolve().parent / "idl"
TYPESUPPORTS = ["rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"]
FLAGS = ["-O2", "-fPIC", "-fvisibility=default", "-DRCUTILS_ENABLE_FAULT_INJECTION=0"]
# TransformStamped holds a Header, which holds a Time: their type descriptions are used too.
RUNTIME = [
    "std_msgs__rosidl_generator_c",
    "builtin_interfaces__rosidl_generator_c",
    "rosidl_runtime_c",
    "rcutils",
]
GENERATED, GEOMETRY = f"{PACKAGE}__rosidl_generator_c", "geometry_msgs__rosidl_generator_c"


def ros_prefix() -> Path:
    """Where the wheels put share/, include/ and lib/: a venv, or pip's overlay of a build."""
    import rosidl_generator_c

    prefix = Path(rosidl_generator_c.__file__).resolve().parents[4]
    if not (prefix / "share" / "geometry_msgs").is_dir():
        raise SystemExit(
            f"no ROS interface files under {prefix / 'share'}; install ros-geometry-msgs"
        )
    return prefix


def generate(prefix: Path, out: Path) -> dict[str, Path]:
    """Run the rosidl generators; one folder of sources per kind."""
    os.environ["AMENT_PREFIX_PATH"] = str(prefix)
    logging.getLogger("rosidl_cli.entry_points").setLevel(logging.ERROR)
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    generators = {
        "c": GenerateC("c"),
        "fastrtps_c": GenerateFastRTPSCTypesupport("fastrtps_c"),
        "introspection_c": GenerateIntrospectionCTypesupport("introspection_c"),
        "typesupport_c": GenerateCTypesupport("c", typesupport_implementations=TYPESUPPORTS),
        "py": GeneratePython("py", typesupport_implementations=["rosidl_typesupport_c"]),
    }
    for kind, generator in generators.items():
        target = out / kind / PACKAGE
        target.mkdir(parents=True)
        generator.generate(PACKAGE, [f"{IDL}:{MESSAGE}.idl"], [str(prefix / "share")], target)
    check_type_hash(out / "c" / PACKAGE / f"{MESSAGE}.json")
    return {kind: out / kind for kind in generators}


def check_type_hash(description: Path) -> None:
    """Stop the build unless the type is the one that robots use."""
    found = json.loads(description.read_text())["type_hashes"][0]["hash_string"]
    if found != TYPE_HASH:
        raise SystemExit(f"the type hash of TFMessage is {found}, not {TYPE_HASH}")


@dataclass(frozen=True)
class Toolchain:
    """Compilers and where they look; everything is written below `out`."""

    prefix: Path
    out: Path
    includes: list[str]

    def run(self, compiler: str, default: str, *arguments: object) -> None:
        """Call a compiler, $CC or $CXX where set, with the system's own libraries."""
        command = [*shlex.split(os.environ.get(compiler, default)), *map(str, arguments)]
        environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
        subprocess.run(command, check=True, env=environment)

    def compile(self, source: Path) -> Path:
        """Object file of one source."""
        name = source.relative_to(self.out).as_posix().replace("/", "_") + ".o"
        target = self.out / "obj" / name
        compiler = (
            ("CXX", "g++", "-std=c++17") if source.suffix == ".cpp" else ("CC", "gcc", "-std=c11")
        )
        self.run(*compiler, *FLAGS, *self.includes, "-c", source, "-o", target)
        return target

    def link(self, name: str, objects: list[Path], needs: list[str], *flags: str) -> Path:
        """Shared library `name` that finds its neighbours beside itself unless `flags` differ."""
        target = self.out / "lib" / name
        search = [f"-Wl,-rpath-link,{self.prefix / 'lib'}", f"-L{target.parent}"]
        search += [f"-L{self.prefix / 'lib'}", *(f"-l{need}" for need in needs)]
        arguments = ["-shared", f"-Wl,-soname,{name}", *(flags or ["-Wl,-rpath,$ORIGIN"])]
        self.run("CXX", "g++", *arguments, "-o", target, *objects, *search)
        return target


def toolchain(prefix: Path, sources: dict[str, Path], out: Path) -> Toolchain:
    """Compilers with the include paths of the wheels, Python and numpy."""
    import numpy

    (out / "obj").mkdir()
    (out / "lib").mkdir()
    folders = [*sources.values(), prefix / "include", *sorted((prefix / "include").iterdir())]
    folders += [Path(sysconfig.get_path("include")), Path(numpy.get_include())]
    return Toolchain(prefix, out, [f"-I{folder}" for folder in folders if folder.is_dir()])


def compile_all(tools: Toolchain, sources: dict[str, Path]) -> dict[str, list[Path]]:
    """Object files per kind; the entry point of the Python extension is a kind of its own."""
    files = [path for folder in sources.values() for path in sorted(folder.rglob("*"))]
    files = [path for path in files if path.suffix in (".c", ".cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = dict(zip(files, pool.map(tools.compile, files)))
    kinds: dict[str, list[Path]] = {}
    for source, target in objects.items():
        kind = source.relative_to(tools.out).parts[0]
        kinds.setdefault("extension" if ".ep." in source.name else kind, []).append(target)
    return kinds


def link_all(tools: Toolchain, objects: dict[str, list[Path]]) -> tuple[list[Path], Path]:
    """Link in the order of dependence: the libraries, and the Python extension."""
    own, strict = ["-Wl,-rpath,$ORIGIN"], "-Wl,--no-undefined"

    def library(kind: str, suffix: str, needs: list[str], *flags: str) -> Path:
        name = f"lib{PACKAGE}__{suffix}.so"
        return tools.link(name, objects[kind], [*needs, *RUNTIME], *own, *flags)

    fastrtps = ["geometry_msgs__rosidl_typesupport_fastrtps_c", "rosidl_typesupport_fastrtps_c"]
    fastrtps += ["rosidl_typesupport_fastrtps_cpp", "fastcdr", "rmw"]
    introspection = ["geometry_msgs__rosidl_typesupport_introspection_c"]
    introspection += ["rosidl_typesupport_introspection_c"]
    common = [GENERATED, GEOMETRY]
    python = [f"{PACKAGE}__rosidl_typesupport_c", "geometry_msgs__rosidl_generator_py", *common]
    libraries = [
        library("c", "rosidl_generator_c", [GEOMETRY], strict),
        library("fastrtps_c", "rosidl_typesupport_fastrtps_c", [*common, *fastrtps], strict),
        library(
            "introspection_c",
            "rosidl_typesupport_introspection_c",
            [*common, *introspection],
            strict,
        ),
        library(
            "typesupport_c", "rosidl_typesupport_c", [GENERATED, "rosidl_typesupport_c"], strict
        ),
        # Python's own symbols stay undefined: the interpreter has them.
        library("py", "rosidl_generator_py", python),
    ]
    extension = tools.link(
        f"{PACKAGE}_s__rosidl_typesupport_c.so",
        objects["extension"],
        [f"{PACKAGE}__rosidl_generator_py", *python, *RUNTIME],
        "-Wl,-z,lazy",
        "-Wl,-rpath,$ORIGIN/../../..",
    )
    return libraries, extension


def index_entries(folder: Path) -> list[tuple[str, list[str]]]:
    """Data files that announce the package to ament."""
    contents = {
        "packages": "",
        "package_run_dependencies": "geometry_msgs;rosidl_default_runtime",
        "rosidl_interfaces": f"{MESSAGE}.idl\n{MESSAGE}.msg",
    }
    entries = []
    for resource, text in contents.items():
        path = folder / resource / PACKAGE
        path.parent.mkdir(parents=True)
        path.write_text(text)
        entries.append((f"share/ament_index/resource_index/{resource}", [str(path)]))
    return entries


class Build(build_py):
    """Generates, compiles and adds the results to the distribution."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            raise SystemExit("tf2_msgs cannot be installed in editable mode")
        out = Path(tempfile.mkdtemp(prefix=f"{PACKAGE}-"))
        atexit.register(shutil.rmtree, out, ignore_errors=True)
        prefix = ros_prefix()
        sources = generate(prefix, out)
        tools = toolchain(prefix, sources, out)
        libraries, extension = link_all(tools, compile_all(tools, sources))
        self.copy_modules(sources["py"] / PACKAGE / "msg", extension)
        description = out / "c" / PACKAGE / f"{MESSAGE}.json"
        interfaces = [IDL / f"{MESSAGE}.idl", IDL / f"{MESSAGE}.msg", description]
        self.distribution.data_files += [
            ("lib", [str(path) for path in libraries]),
            (f"share/{PACKAGE}", [str(IDL / "package.xml")]),
            (f"share/{PACKAGE}/msg", [str(path) for path in interfaces]),
            *index_entries(out / "index"),
        ]

    def copy_modules(self, generated: Path, extension: Path) -> None:
        """Put the generated Python modules and the extension into the package."""
        target = Path(self.build_lib) / PACKAGE
        (target / "msg").mkdir(parents=True, exist_ok=True)
        for path in sorted(generated.glob("*.py")):
            self.copy_file(str(path), str(target / "msg" / path.name))
        self.copy_file(str(extension), str(target / extension.name))


class BinaryDistribution(Distribution):
    """A wheel for one platform and one Python."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    name="recon4d-tf2-msgs",
    version="0.1.0",
    description="tf2_msgs/msg/TFMessage for the ROS 2 wheels of PyPI",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": "src"},
    packages=[PACKAGE],
    data_files=[],
    cmdclass={"build_py": Build},
    distclass=BinaryDistribution,
    install_requires=["ros-geometry-msgs", "numpy"],
    zip_safe=False,
)
