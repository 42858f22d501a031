/* formats.h -- the formats of numbers: those of arrays in memory, and those that products are made of. */
#ifndef SELFATTN_CONTRACTS_FORMATS_H
#define SELFATTN_CONTRACTS_FORMATS_H

/* What the numbers of an array are. Arithmetic is float32, or float64 where the queries are; int8 comes with scales. */
enum sa_dtype { SA_FLOAT32 = 0, SA_FLOAT64, SA_FLOAT16, SA_BFLOAT16, SA_INT8 };

/* What the operands of a product are: one row of sa_formats each, and one table of kernels. `SA_NUMBERS` are the numbers
 * that are computed with, float32 or float64. To add a format: a value here, its row in isa/dispatch.c, and its kernels,
 * compiled by a stub of isa/ for each instruction set that has the instruction. */
enum sa_format { SA_FORMAT_NUMBERS = 0, SA_FORMAT_BFLOAT16, SA_FORMATS };

struct sa_format_description {
    const char *name;          /* what a caller asks for: `precision` */
    enum sa_dtype operand;     /* one factor of a product; */
    enum sa_dtype accumulator; /* what products are summed in */
    int terms;                 /* products that one step of a sum takes: their operands lie side by side */
};

extern const struct sa_format_description sa_formats[SA_FORMATS];

#endif
