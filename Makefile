# Chorale's front door. `make help` lists the targets.
# VARIANT = release | debug | asan | tsan; everything lands in build/$(VARIANT).

VARIANT ?= release
# V=1 shows the commands whole.
ifneq ($(V),1)
Q := @
endif
ifeq ($(origin CC),default)
CC := gcc
endif
B       := build/$(VARIANT)
BIN     := $(B)/bin
OBJ     := $(B)/obj
GEN     := $(B)/gen

WARN   := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla \
          -Wwrite-strings -Wformat=2 -Werror
HARDEN := -fstack-protector-strong -fPIE
FLAGS_release := -O2 -D_FORTIFY_SOURCE=2
FLAGS_debug   := -O0 -DDEBUG_CHECKS
FLAGS_asan    := -O1 -DDEBUG_CHECKS -fsanitize=address,undefined -fno-sanitize-recover=all
FLAGS_tsan    := -O1 -DDEBUG_CHECKS -fsanitize=thread
FLAGS := $(FLAGS_$(VARIANT))
ifeq ($(FLAGS),)
$(error VARIANT must be release, debug, asan or tsan)
endif

PKGS   := libzmq libprotobuf-c yaml-0.1 jansson libxxhash openblas hwloc
# Warm, so that 'make install-deps' and 'make help' work on a bare machine.
PC_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PC_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
AUDIO_LIBS := $(shell pkg-config --libs sndfile fftw3 2>/dev/null)

CFLAGS_ALL := -std=c11 -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -g -I. -I$(GEN) $(FLAGS) $(HARDEN) $(PC_CFLAGS) $(CFLAGS)
LIBS       := $(PC_LIBS) -lm -lpthread
LDFLAGS_ALL := -pie $(filter -fsanitize=%,$(FLAGS)) $(LDFLAGS)

# Rooms: every .c of a room goes into its library, but for those with a main.
MAINS := deploy/chorale.c deploy/init.c deploy/train.c deploy/stop.c deploy/status.c deploy/set.c \
         deploy/checkpoint.c server/main.c server/coordinator/main.c worker/main.c \
         worker/tools/eval.c worker/tools/score.c worker/tools/features.c worker/tools/data.c \
         worker/tools/prepare.c worker/tools/doctor.c
COMMON := $(wildcard common/*.c)
SERVER := $(filter-out $(MAINS),$(wildcard server/*.c server/coordinator/*.c))
NNET   := $(wildcard worker/nnet/*.c worker/nnet/kernels/*.c)
WORKER := $(filter-out $(MAINS),$(wildcard worker/*.c worker/data/*.c worker/tools/*.c)) $(NNET)
DEPLOY := $(filter-out $(MAINS),$(wildcard deploy/*.c))

objs = $(patsubst %.c,$(OBJ)/%.o,$(1))
LIB_COMMON := $(B)/libcommon.a
LIB_SERVER := $(B)/libserver.a
LIB_WORKER := $(B)/libworker.a
LIB_NNET64 := $(B)/libnnet64.a
LIB_DEPLOY := $(B)/libdeploy.a

MAINS := $(wildcard $(MAINS))
program = $(BIN)/chorale$(if $(filter chorale,$(1)),,-$(1))
PROGRAMS := $(foreach m,$(filter $(wildcard deploy/*.c),$(MAINS)),$(call program,$(basename $(notdir $(m))))) \
            $(foreach m,$(filter $(wildcard worker/tools/*.c),$(MAINS)),$(call program,$(basename $(notdir $(m))))) \
            $(if $(wildcard server/main.c),$(call program,server)) \
            $(if $(wildcard server/coordinator/main.c),$(call program,coordinator)) \
            $(if $(wildcard worker/main.c),$(call program,worker))

UNIT_SRC  := $(wildcard tests/unit/*/*.c)
UNIT_BIN  := $(patsubst tests/unit/%.c,$(B)/tests/%,$(UNIT_SRC))
SIM_SRC   := $(wildcard tests/sim/*.c)
SIM_BIN   := $(if $(SIM_SRC),$(BIN)/chorale-simulate)
SERIAL    := $(if $(wildcard tests/cluster/serial.c),$(BIN)/chorale-serial) $(BIN)/chorale-emulate
BENCH_PEERS := $(if $(wildcard /usr/include/dnnl.h),$(B)/bench/onednn_lstmp) # where libdnnl-dev is installed
BENCH_BIN := $(B)/bench/compute $(B)/bench/exchange $(BENCH_PEERS)

.PHONY: all programs unit check demo bench bench-compute bench-exchange nightly help install-deps clean format
all: programs $(UNIT_BIN) ## build the programs and the tests
programs: $(PROGRAMS) $(SIM_BIN) $(SERIAL) ## build the programs alone

check: install-deps ## build and run every test (about 20 minutes on two cores)
	@scripts/check
demo: install-deps ## train a small real job from synthetic speech and show the result
	@$(MAKE) --no-print-directory programs
	@scripts/demo
bench: all $(BENCH_BIN) ## every bench: compute, exchange
	@scripts/bench
bench-compute: $(B)/bench/compute $(BENCH_PEERS) ## frames/s of one worker beside sgemm, PyTorch, oneDNN (4 minutes)
	@scripts/bench compute
bench-exchange: $(B)/bench/exchange ## blocks over loopback: GB/s, latency, memory, beside bare libzmq (4 minutes)
	@scripts/bench exchange
nightly: install-deps ## what takes longer than make check allows
	@scripts/nightly
install-deps: ## install the Debian packages that the build and the tests need
	@scripts/install-deps
unit: programs $(UNIT_BIN) ## build and run the unit tests of this VARIANT
	@scripts/run-tests $(UNIT_BIN)
format: ## lay the code out as .clang-format says
	@clang-format -i $$(git ls-files '*.c' '*.h')
clean: ## remove build/
	rm -rf build
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- generated code: without our warnings
$(GEN)/proto/chorale.pb-c.c: proto/chorale.proto
	@mkdir -p $(@D)
	$(Q)protoc --c_out=$(GEN) $<
$(GEN)/proto/chorale.pb-c.h: $(GEN)/proto/chorale.pb-c.c ;
$(OBJ)/gen/chorale.pb-c.o: $(GEN)/proto/chorale.pb-c.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_ALL) -w -c $< -o $@
$(OBJ)/common/msg.o: | $(GEN)/proto/chorale.pb-c.h

# --- kernels name their instruction set in the file name; the plan asks the CPU before it calls them
$(OBJ)/%_avx2.o: EXTRA := -mavx2 -mfma -mf16c -O3
$(OBJ)/%_avx512.o: EXTRA := -mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx2 -mfma -O3
# a loop of six instructions takes twice as long where it lies across two lines of code
$(OBJ)/common/element_avx2.o: EXTRA := -mavx2 -mfma -mf16c -O3 -falign-loops=64
# the square root of a vector has no errno
$(OBJ)/server/update.o: EXTRA := -fno-math-errno
$(OBJ)/server/update_avx2.o: EXTRA := -mavx2 -mfma -O3 -fno-math-errno
$(OBJ)/%.o: %.c
	@mkdir -p $(@D)
	@echo "  cc   $(VARIANT)  $<"
	$(Q)$(CC) $(CFLAGS_ALL) $(WARN) $(EXTRA) -MMD -MP -c $< -o $@
# the maths once more in double precision with libm, as the reference of the tests
$(OBJ)/nnet64/%.o: %.c
	@mkdir -p $(@D)
	@echo "  cc   $(VARIANT)  $<"
	$(Q)$(CC) $(CFLAGS_ALL) $(WARN) -DREAL_DOUBLE -MMD -MP -c $< -o $@

$(LIB_COMMON): $(call objs,$(COMMON)) $(if $(wildcard proto/chorale.proto),$(OBJ)/gen/chorale.pb-c.o)
$(LIB_SERVER): $(call objs,$(SERVER))
$(LIB_WORKER): $(call objs,$(WORKER))
$(LIB_DEPLOY): $(call objs,$(DEPLOY))
NNET64_SRC := $(filter-out %_avx2.c %_avx512.c,$(NNET))
$(LIB_NNET64): $(patsubst %.c,$(OBJ)/nnet64/%.o,$(NNET64_SRC))
%.a:
	@rm -f $@
	$(Q)ar rcs $@ $^

define link
@mkdir -p $(@D)
@echo "  link $(VARIANT)  $(notdir $@)"
$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS) $(EXTRA_LIBS)
endef
define main_rule
$(call program,$(2)): $(OBJ)/$(basename $(1)).o $(3) $(LIB_COMMON)
	$$(link)
endef
$(foreach m,$(filter deploy/%,$(MAINS)),$(eval $(call main_rule,$(m),$(basename $(notdir $(m))),$(LIB_DEPLOY))))
$(foreach m,$(filter worker/tools/%,$(MAINS)),$(eval $(call main_rule,$(m),$(basename $(notdir $(m))),$(LIB_WORKER))))
$(eval $(call main_rule,server/main.c,server,$(LIB_SERVER)))
$(eval $(call main_rule,server/coordinator/main.c,coordinator,$(LIB_SERVER)))
$(eval $(call main_rule,worker/main.c,worker,$(LIB_WORKER)))
$(BIN)/chorale-features: EXTRA_LIBS := $(AUDIO_LIBS)

ALL_LIBS := $(LIB_DEPLOY) $(LIB_SERVER) $(LIB_WORKER) $(LIB_COMMON)
$(B)/tests/%: EXTRA_LIBS = -lcmocka $(AUDIO_LIBS)
$(B)/tests/worker/test_golden64: $(OBJ)/nnet64/tests/unit/worker/test_golden64.o $(LIB_NNET64) $(LIB_COMMON)
	$(link)
$(B)/tests/%: $(OBJ)/tests/unit/%.o $(ALL_LIBS)
	$(link)
BENCH_OBJ := $(call objs,$(wildcard tests/bench/*.c))
$(B)/bench/compute: $(call objs,$(wildcard tests/bench/compute/*.c)) $(BENCH_OBJ) $(ALL_LIBS)
	$(link)
$(B)/bench/exchange: $(call objs,$(wildcard tests/bench/exchange/*.c)) $(BENCH_OBJ) $(ALL_LIBS)
	$(link)
$(B)/bench/onednn_lstmp: EXTRA_LIBS := -ldnnl
$(B)/bench/onednn_lstmp: $(OBJ)/tests/bench/peers/onednn_lstmp.o $(LIB_COMMON)
	$(link)
$(BIN)/chorale-simulate: $(call objs,$(SIM_SRC)) $(ALL_LIBS)
	$(link)
$(BIN)/chorale-serial: $(OBJ)/tests/cluster/serial.o $(ALL_LIBS)
	$(link)
$(BIN)/chorale-emulate: $(OBJ)/tests/study/emulate.o $(ALL_LIBS)
	$(link)

.SECONDARY:
-include $(shell find $(OBJ) -name '*.d' 2>/dev/null)
