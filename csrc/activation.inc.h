/* activation.inc.h -- the functions between the two linear layers of a feed-forward network. */

/* x * Phi(x), exactly (not the tanh form): max(x, 0) - |x| * Phi(-|x|), where Phi(-t) = exp(-t^2 / 2) * R(u),
 * u = 1 / (1 + 0.3 t); R is a minimax polynomial of degree 8 (relative error 6e-8 up to t = 14, where Phi underflows).
 * The tail keeps its digits: exp's argument carries the rounding errors of t^2 and of the constant along. */
INLINE vfloat gelu_vector(vfloat x)
{
    const float half_log2e = -0.72134752f, half_log2e_low = -9.629815e-09f;
    vfloat t = vmax(x, -x);
    vfloat u = vsplat(1.0f) / vfma(t, vsplat(0.3f), vsplat(1.0f));
    vfloat r = vsplat(0.0383781232f);
    r = vfma(r, u, vsplat(-0.169165403f));
    r = vfma(r, u, vsplat(0.228658795f));
    r = vfma(r, u, vsplat(-0.0765052214f));
    r = vfma(r, u, vsplat(0.142534792f));
    r = vfma(r, u, vsplat(0.0946837813f));
    r = vfma(r, u, vsplat(0.121920288f));
    r = vfma(r, u, vsplat(0.119487695f));
    r = vfma(r, u, vsplat(7.1685995e-06f));
    vfloat capped = vmax(vsplat(-13.2f), -t); /* 2^-125.6 from here on is 0; -t, so that NaN stays */
    vfloat square = capped * capped, low = vfma(capped, capped, -square);
    vfloat power = square * vsplat(half_log2e);
    vfloat error = vfma(square, vsplat(half_log2e), -power);
    error = vfma(square, vsplat(half_log2e_low), vfma(low, vsplat(half_log2e), error));
    vfloat e = vexp2(power);
    e = vfma(e * error, vsplat(0.69314718f), e);
    return vmax(vsplat(0.0f), x) + capped * e * r; /* capped: -t, but finite where e is 0 */
}

/* 1 / (1 + exp(-x)) */
INLINE vfloat sigmoid_vector(vfloat x)
{
    vfloat power = x * vsplat(-1.44269504f);
    vint far = power >= vsplat(126.0f);
    return vselect(far, vsplat(0.0f), vsplat(1.0f) / (vsplat(1.0f) + vexp2(vselect(far, vsplat(0.0f), power))));
}

/* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)) */
INLINE vfloat gelu_tanh_vector(vfloat x)
{
    vfloat inner = vfma(x * x, vsplat(0.044715f * 1.5957691f), vsplat(1.5957691f));
    return x * sigmoid_vector(x * inner);
}

INLINE vfloat activate_vector(enum sa_activation kind, vfloat x)
{
    switch (kind) {
    case SA_GELU:
        return gelu_vector(x);
    case SA_GELU_TANH:
        return gelu_tanh_vector(x);
    case SA_RELU:
        return vmax(vsplat(0.0f), x);
    case SA_SILU:
        return x * sigmoid_vector(x);
    default:
        return x;
    }
}

static void activate(enum sa_activation kind, float *x, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        ptrdiff_t lanes = smaller(LANES, n - i);
        if (lanes == LANES)
            vstore(x + i, activate_vector(kind, vload(x + i)));
        else
            vstore_first(x + i, activate_vector(kind, vload_first(x + i, lanes)), lanes);
    }
}

/* y[row] = act(gate[row]) * up[row], where a row of gate_up is [gate | up], each `width` wide. */
static void gate(enum sa_activation kind, const float *gate_up, ptrdiff_t rows, ptrdiff_t width, float *y)
{
    for (ptrdiff_t row = 0; row < rows; ++row, gate_up += 2 * width, y += width)
        for (ptrdiff_t i = 0; i < width; i += LANES) {
            ptrdiff_t lanes = smaller(LANES, width - i);
            vfloat g = vload_first(gate_up + i, lanes), up = vload_first(gate_up + width + i, lanes);
            vstore_first(y + i, activate_vector(kind, g) * up, lanes);
        }
}
