/* The kernels, written once in the order the data flows; each kernels_<isa>.c includes this inside its target region.
 * (Included as a template rather than written as macros, so that a debugger steps through it line by line.) */
#include "vector.inc.h"
#include "math.inc.h"
#include "tile.inc.h"
#include "attention.inc.h"
#include "weights.inc.h"
#include "activation.inc.h"
#include "linear.inc.h"
#include "norm.inc.h"
#include "probe.inc.h"

#define SA_KERNELS_(isa_)                                                                                              \
    const struct sa_kernels sa_kernels_##isa_ = {                                                                      \
        .isa = #isa_,                                                                                                  \
        .lanes = LANES,                                                                                                \
        .panel_width = PANEL_LANES,                                                                                    \
        .runs_here = runs_here,                                                                                        \
        .attention_workspace = attention_workspace,                                                                    \
        .attention = attention,                                                                                        \
        .attention_weights = attention_weights,                                                                        \
        .pack_weights = pack_weights,                                                                                  \
        .linear = linear,                                                                                              \
        .norm = norm,                                                                                                  \
        .activate = activate,                                                                                          \
        .gate = gate,                                                                                                  \
        .peak_loop = peak_loop,                                                                                        \
        .read_loop = read_loop,                                                                                        \
    }
#define SA_KERNELS(isa_) SA_KERNELS_(isa_)
SA_KERNELS(SA_ISA);
