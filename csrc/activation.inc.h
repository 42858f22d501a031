/* activation.inc.h -- the functions between the two linear layers of a feed-forward network. */

/* x * Phi(x), exactly (not the tanh form): max(x, 0) - |x| * Phi(-|x|), where Phi(-t) = exp(-t^2 / 2) * R(t).
 * The tail keeps its digits: exp's argument carries the rounding errors of t^2 and of the constant along. */
#ifdef SA_FLOAT64_KERNELS
static const real GELU[] = {0.45775567058612776,    -0.0887672250343494,     0.03561027308443366,
                            0.0031622511861771007,  -0.022092328204141753,   0.024432991202179156,
                            -0.017920498570175983,  0.009768848373517372,    -0.003892083932712969,
                            0.0009673705047480832,  -1.8324476953808547e-05, -9.604902560335607e-05,
                            3.263650735386465e-05,  2.4736403517465035e-06,  -4.693392712013096e-06,
                            6.110679732496798e-07,  5.47586581307684e-07,    -1.5049097964966477e-07,
                            -6.684418249697556e-08, 1.8845729592532507e-08,  7.926126385712773e-09};
static const real GELU_IS_0 = 37.635, HALF_LOG2E = -0.7213475204444817, HALF_LOG2E_LOW = -1.0177636870465517e-17;

/* R = W(v) / (1 + t), W of degree 20 (relative error 1.3e-16), v in [-1, 0.75]: W stays near 1/2. */
INLINE vreal gelu_ratio(vreal t)
{
    vreal u = vsplat(1.0) / vfma(t, vsplat(0.184), vsplat(1.0)), v = vfma(vsplat(-2.0), u, vsplat(1.0));
    return polynomial(GELU, DEGREE(GELU), v) / (vsplat(1.0) + t);
}
#else
static const real GELU[] = {7.1685995e-06f, 0.119487695f, 0.121920288f,  0.0946837813f, 0.142534792f,
                            -0.0765052214f, 0.228658795f, -0.169165403f, 0.0383781232f};
static const real GELU_IS_0 = 13.2f, HALF_LOG2E = -0.72134752f, HALF_LOG2E_LOW = -9.629815e-09f;

/* R is a polynomial of degree 8 in u (relative error 6e-8 up to t = 14, where Phi underflows). */
INLINE vreal gelu_ratio(vreal t)
{
    return polynomial(GELU, DEGREE(GELU), vsplat(1.0f) / vfma(t, vsplat(0.3f), vsplat(1.0f)));
}
#endif

/* exp(-t^2 / 2) */
INLINE vreal gelu_exponential(vreal t)
{
    vreal square = t * t, low = vfma(t, t, -square);
    vreal power = square * vsplat(HALF_LOG2E);
    vreal error = vfma(square, vsplat(HALF_LOG2E), -power);
    error = vfma(square, vsplat(HALF_LOG2E_LOW), vfma(low, vsplat(HALF_LOG2E), error));
    vreal e = vexp2(power);
    return vfma(e * error, vsplat((real)0.6931471805599453), e);
}

INLINE vreal gelu_vector(vreal x)
{
    vreal t = vmax(x, -x), r = gelu_ratio(t);
    vreal capped = vmax(vsplat(-GELU_IS_0), -t); /* e is 0 from here on; -t, so that NaN stays */
    return vmax(vsplat(0.0f), x) + capped * gelu_exponential(capped) * r; /* capped: finite where e is 0 */
}

/* 1 / (1 + e), e = exp(-x), which is left at 1 where the result is 0. */
INLINE vreal sigmoid_and_exponential(vreal x, vreal *e)
{
    vreal power = x * vsplat(-LOG2E);
    vint far = power >= vsplat((real)BIAS_1);
    *e = vexp2(vselect(far, vsplat(0.0f), power));
    return vselect(far, vsplat(0.0f), vsplat(1.0f) / (vsplat(1.0f) + *e));
}

INLINE vreal sigmoid_vector(vreal x)
{
    vreal e;
    return sigmoid_and_exponential(x, &e);
}

static const real TANH_LINEAR = (real)1.5957691216057308, TANH_CUBIC = (real)(0.044715 * 1.5957691216057308);

/* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)) */
INLINE vreal gelu_tanh_vector(vreal x)
{
    return x * sigmoid_vector(x * vfma(x * x, vsplat(TANH_CUBIC), vsplat(TANH_LINEAR)));
}

INLINE vreal activate_vector(enum sa_activation kind, vreal x)
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

static void activate(enum sa_activation kind, void *data, ptrdiff_t n)
{
    real *x = data;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        ptrdiff_t lanes = smaller(LANES, n - i);
        if (lanes == LANES)
            vstore(x + i, activate_vector(kind, vload(x + i)));
        else
            vstore_first(x + i, activate_vector(kind, vload_first(x + i, lanes)), lanes);
    }
}

/* y[row] = act(gate[row]) * up[row], where a row of gate_up is [gate | up], each `width` wide. */
static void gate(enum sa_activation kind, const void *gates, ptrdiff_t rows, ptrdiff_t width, void *result)
{
    const real *gate_up = gates;
    real *y = result;
    for (ptrdiff_t row = 0; row < rows; ++row, gate_up += 2 * width, y += width)
        for (ptrdiff_t i = 0; i < width; i += LANES) {
            ptrdiff_t lanes = smaller(LANES, width - i);
            vreal g = vload_first(gate_up + i, lanes), up = vload_first(gate_up + width + i, lanes);
            vstore_first(y + i, activate_vector(kind, g) * up, lanes);
        }
}
