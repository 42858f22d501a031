/* SPDX-License-Identifier: Apache-2.0 */
/* Prints a hash of every kernel's results over many shapes: `bits ISA`, or `bits` for the names that run here.
 * Two instruction sets, or two machines, compute the same bits if and only if the lines are the same. No Python, so
 * that the same program runs under an emulator of another processor. */
#include "bits_attention.h"
#include "bits_encoder.h"
#include "bits_layers.h"

int main(int argc, char **argv)
{
    if (argc != 2) {
        for (int i = 0; sa_available(i); ++i)
            puts(sa_available(i)->isa);
        return 0;
    }
    if (sa_use(argv[1]) != 0) {
        fprintf(stderr, "bits: %s does not run here\n", argv[1]);
        return 2;
    }
    kernels = sa_active();
    random_state = 20170612;
    all_attention();
    all_backward();
    all_layers();
    all_relative();
    all_angles();
    all_encoders();
    return 0;
}
