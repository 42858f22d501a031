/* SPDX-License-Identifier: Apache-2.0 */
/* formats.h -- the formats of numbers: of arrays in memory (dtypes), and of the operands of products. */
#ifndef SELFATTN_CONTRACTS_FORMATS_H
#define SELFATTN_CONTRACTS_FORMATS_H

/* The numbers of an array. Arithmetic is float32, or float64 where the queries are float64; int8 comes with scales. */
enum sa_dtype { SA_FLOAT32 = 0, SA_FLOAT64, SA_FLOAT16, SA_BFLOAT16, SA_INT8 };

/* The operands of a product. Each format has one row of sa_formats, and one table of kernels. The operands of
 * SA_FORMAT_NUMBERS are the numbers of the arithmetic, float32 or float64. A new format needs a value here, a row in
 * isa/dispatch.c, and a stub in isa/ for each instruction set that has an instruction for it. */
enum sa_format { SA_FORMAT_NUMBERS = 0, SA_FORMAT_BFLOAT16, SA_FORMATS };

struct sa_format_description {
    const char *name;          /* the `precision` that a caller asks for */
    enum sa_dtype operand;     /* dtype of a factor of a product */
    enum sa_dtype accumulator; /* dtype of the sum of products */
    int terms;                 /* products of one step of a sum; their operands lie side by side */
};

extern const struct sa_format_description sa_formats[SA_FORMATS];

#endif
