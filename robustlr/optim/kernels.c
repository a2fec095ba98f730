/* The rules of rules.py as kernels over all parameters of a group: one source for CPU and CUDA.

   Compiled by kernels.py, as C for the CPU (OpenMP over units, SIMD within a row) and as CUDA C++
   for a GPU (a block for each unit, its threads along the row). A unit is a range of rows of one
   parameter, and the same unit is always added up in the same order. What the names and the guards
   mean is said in rules.py; every kernel is tested against it. */

#include "kernels.h"

/* project() of one row, whose sum and sum of squares are known. */
HELPER void project(float *RESTRICT row, Index n, double sum, double squares, int center,
                    int normalize) {
  float mean = 0, factor = 1;
  if (center) {
    const double before = squares;
    mean = sum / n;
    squares -= sum / n * sum;
    if (squares < 0.1 * before) { /* too little is left for the difference to be exact */
      float precise = 0;
      LANES(i, n) precise += (row[i] - mean) * (row[i] - mean);
      squares = total(precise);
      if (sqrt(squares) <= 16 * 1.1920929e-7 * sqrt(before)) { /* a constant row */
        mean = 0;
        squares = before;
      }
    }
  }
  if (normalize) factor = squares > 0 ? 1 / sqrt(squares) : 0;
  LANES(i, n) row[i] = (row[i] - mean) * factor;
}

/* Nero. state: running squared norm, scale */

enum { NERO_LR, NERO_BETA, NERO_CENTER, NERO_NORMALIZE };

HELPER void nero_rows(const Parameter *p, const Unit *unit, const double *h, double direction) {
  const Index n = p->length;
  const float beta = h[NERO_BETA], unbias = corrected(h[NERO_BETA], *p->step);
  const float rate = direction * h[NERO_LR] * *p->state[1];
  for (Index row = unit->row; row < unit->end; row++) {
    const float *RESTRICT gradient = p->gradient + row * n;
    float *RESTRICT weight = p->weight + row * n;
    float observed = 0;
    for (Index b = 0; b < n; b += AHEAD) { /* two streams from memory are faster than one */
      const Index m = n - b < AHEAD ? n - b : AHEAD;
      FETCH(weight + b, m);
      LANES(i, m) observed += gradient[b + i] * gradient[b + i];
    }
    observed = total(observed);
    if (!(observed <= 3.402823466e38f)) continue;
    float average = beta * p->state[0][row] + (1 - beta) * observed;
    TOGETHER;
    LEADER p->state[0][row] = average;
    if (observed == 0) continue;
    float factor = rate * inverse_root(average * unbias);
    if (h[NERO_CENTER] == 0 && h[NERO_NORMALIZE] == 0) {
      LANES(i, n) weight[i] -= factor * gradient[i];
      continue;
    }
    float sum = 0, squares = 0;
    FETCH(gradient + n, n);
    LANES(i, n) {
      float w = weight[i] - factor * gradient[i];
      weight[i] = w;
      sum += w;
      squares += w * w;
    }
    project(weight, n, total(sum), total(squares), h[NERO_CENTER] != 0, h[NERO_NORMALIZE] != 0);
  }
}

HELPER void nero_elements(const Parameter *p, const Unit *unit, const double *h, double direction) {
  const float beta = h[NERO_BETA], unbias = corrected(h[NERO_BETA], *p->step);
  const float rate = direction * h[NERO_LR] * *p->state[1];
  const float *RESTRICT gradient = p->gradient + unit->row;
  float *RESTRICT weight = p->weight + unit->row, *RESTRICT average = p->state[0] + unit->row;
  LANES(i, unit->end - unit->row) {
    float g = gradient[i], observed = g * g;
    int ok = usable(g);
    float v = ok ? beta * average[i] + (1 - beta) * observed : average[i];
    average[i] = v;
    weight[i] -= ok ? rate * g * inverse_root(v * unbias) : 0;
  }
}

/* Rotational variants. state: norm, running squared norm, then that of the inner optimizer.
   Elements (parameters that are not rotational) have only the latter. */

enum { ADAMW, ADAM_L2, SGD, LION };
enum { RV_LR, RV_DECAY, RV_BETA1, RV_BETA2, RV_EPS, RV_ROTATION, RV_BETA, RV_RV_EPS, RV_CENTER,
       RV_SLOW, RV_FAST, RV_SPEED, RV_ANY };
/* SGD: beta1 is the momentum, beta2 the dampening, eps whether nesterov.
   RV_ANY: elements take gradients that are not usable too, as in torch's own optimizers. */

typedef struct {
  float beta1, beta2, eps, decay, unbias1, unbias2, sign;
} Inner;

HELPER Inner inner_of(int kind, const Parameter *p, const double *h, double direction) {
  Inner inner;
  double step = *p->step;
  inner.beta1 = h[RV_BETA1];
  inner.beta2 = h[RV_BETA2];
  inner.eps = h[RV_EPS];
  inner.decay = h[RV_DECAY];
  inner.unbias1 = inner.unbias2 = 1;
  inner.sign = direction;
  if (kind == ADAMW || kind == ADAM_L2) {
    inner.unbias1 = corrected(h[RV_BETA1], step);
    inner.unbias2 = corrected(h[RV_BETA2], step);
  }
  if (kind == SGD) inner.beta2 = step == 1 ? 1 : 1 - h[RV_BETA2];
  return inner;
}

/* The inner optimizer's direction at one element; first and second are its state there. */
HELPER float inner_direction(int kind, Inner k, float g, float w, float *first, float *second) {
  if (kind == LION) {
    float u = sign(k.beta1 * *first + (1 - k.beta1) * g);
    *first = k.beta2 * *first + (1 - k.beta2) * g;
    return u;
  }
  if (kind == SGD) {
    *first = k.beta1 * *first + k.beta2 * g;
    return k.eps != 0 ? g + k.beta1 * *first : *first;
  }
  float squared = kind == ADAM_L2 ? g + k.decay * w : g;
  *first = k.beta1 * *first + (1 - k.beta1) * g;
  *second = k.beta2 * *second + (1 - k.beta2) * squared * squared;
  return divided(*first * k.unbias1, root(*second * k.unbias2) + k.eps);
}

HELPER void rotate_rows(int kind, const Parameter *p, const Unit *unit, const double *h,
                        double direction, float *scratch) {
  const Index n = p->length;
  const Index slow = (Index)(h[RV_SLOW] * p->rows), fast = (Index)(h[RV_FAST] * p->rows);
  const float beta = h[RV_BETA], unbias = corrected(h[RV_BETA], *p->step);
  const Inner inner = inner_of(kind, p, h, direction);
  for (Index row = unit->row; row < unit->end; row++) {
    const float *RESTRICT gradient = p->gradient + row * n;
    float *RESTRICT weight = p->weight + row * n, *RESTRICT first = p->state[2] + row * n;
    float *RESTRICT second = p->state[3] + row * n, *RESTRICT d = scratch;
    const float norm = p->state[0][row];
    int broken = 0;
    LANES(i, n) broken += !usable(gradient[i]);
    if (total(broken) > 0) continue;

    float sum = 0, mean = 0, along = 0, whole = 0, observed = 0, squares = 0;
    BLOCKS(b, c, n) {
      LANES(i, c) {
        float m = first[b + i], v = kind == ADAMW || kind == ADAM_L2 ? second[b + i] : 0;
        float g = inner.sign * gradient[b + i];
        d[b + i] = inner_direction(kind, inner, g, weight[b + i], &m, &v);
        first[b + i] = m;
        if (kind == ADAMW || kind == ADAM_L2) second[b + i] = v;
      }
      LANES(i, c) {
        sum += d[b + i];
        whole += d[b + i] * d[b + i];
      }
    }
    if (h[RV_CENTER] != 0) mean = total(sum) / n;
    FETCH(gradient + n, n);
    FETCH(weight + n, n);
    LANES(i, n) { d[i] -= mean; along += d[i] * weight[i]; }
    float radial = divided(total(along), norm * norm);
    FETCH(first + n, n);
    if (kind == ADAMW || kind == ADAM_L2) FETCH(second + n, n);
    LANES(i, n) { d[i] -= weight[i] * radial; observed += d[i] * d[i]; }
    observed = total(observed);
    const float rounding = 16 * 1.1920929e-7f;
    if (observed <= rounding * rounding * (float)total(whole)) observed = 0;
    float average = beta * p->state[1][row] + (1 - beta) * observed;
    TOGETHER;
    LEADER p->state[1][row] = average;
    float rotation = h[RV_ROTATION];
    if (row < slow) rotation /= h[RV_SPEED];
    else if (row < slow + fast) rotation *= h[RV_SPEED];
    float factor = divided(rotation * norm, sqrtf(average * unbias) + (float)h[RV_RV_EPS]);
    if (norm == 0 || observed == 0) continue;
    LANES(i, n) { d[i] = weight[i] - factor * d[i]; squares += d[i] * d[i]; }
    float resize = divided(norm, sqrtf(total(squares)));
    LANES(i, n) weight[i] = d[i] * resize;
  }
}

HELPER void step_elements(int kind, const Parameter *p, const Unit *unit, const double *h,
                          double direction) {
  const int two = kind == ADAMW || kind == ADAM_L2, coupled = kind == ADAM_L2 || kind == SGD;
  const int any = h[RV_ANY] != 0;
  const Inner inner = inner_of(kind, p, h, direction);
  const float lr = h[RV_LR], decay = h[RV_DECAY], kept = coupled ? 1 : 1 - h[RV_LR] * h[RV_DECAY];
  const float *RESTRICT gradient = p->gradient + unit->row;
  float *RESTRICT weight = p->weight + unit->row, *RESTRICT first = p->state[0] + unit->row;
  float *RESTRICT second = p->state[1] + unit->row;
  LANES(i, unit->end - unit->row) {
    float w = weight[i], g = inner.sign * gradient[i], m = first[i], v = two ? second[i] : 0;
    int ok = any || usable(g);
    float old_m = m, old_v = v;
    if (coupled) g += decay * w;
    float d = inner_direction(kind == ADAM_L2 ? ADAMW : kind, inner, g, w, &m, &v);
    first[i] = ok ? m : old_m;
    if (two) second[i] = ok ? v : old_v;
    weight[i] = ok ? kept * w - lr * d : w;
  }
}

/* Madam. state: second moment, cap */

enum { MADAM_LR, MADAM_BOUND, MADAM_CENTER, MADAM_NORMALIZE };
#define MADAM_BETA 0.999

HELPER void madam_unit(const Parameter *p, const Unit *unit, const double *h, double direction,
                       float *scratch) {
  const float beta = MADAM_BETA, unbias = corrected(MADAM_BETA, *p->step), cap = *p->state[1];
  const float lr = direction * h[MADAM_LR], bound = h[MADAM_BOUND];
  const Index start = unit->row * p->length;
  const float *RESTRICT gradient = p->gradient + start;
  float *RESTRICT weight = p->weight + start, *RESTRICT second = p->state[0] + start;
  const Index n = unit->end * p->length - start;
  BLOCKS(b, m, n) {
    LANES(i, m) {
      float g = gradient[b + i], v = second[b + i];
      int ok = usable(g);
      v = ok ? beta * v + (1 - beta) * g * g : v;
      second[b + i] = v;
      scratch[i] = ok ? limited(g * inverse_root(v * unbias), bound) * -lr : 0;
    }
    LANES(i, m) {
      float w = weight[b + i], d = scratch[i];
      weight[b + i] = limited(w * EXP(w < 0 ? -d : d), cap);
    }
  }
}

HELPER void project_unit(const Parameter *p, const Unit *unit, int center, int normalize) {
  if (p->length == 1 || !(center || normalize)) return;
  for (Index row = unit->row; row < unit->end; row++) {
    const float *weight = p->weight + row * p->length;
    float sum = 0, squares = 0;
    LANES(i, p->length) { sum += weight[i]; squares += weight[i] * weight[i]; }
    project(p->weight + row * p->length, p->length, total(sum), total(squares), center, normalize);
  }
}

/* Steps relative to the whole parameter: sums over units, their totals, then the update. */

/* Fromage. state: cap (a null pointer if there is none) */

enum { FROMAGE_LR };

HELPER Sums norms(const Parameter *p, const Unit *unit) {
  const Index start = unit->row * p->length;
  const float *RESTRICT gradient = p->gradient + start, *RESTRICT weight = p->weight + start;
  float weights = 0, gradients = 0, products = 0;
  LANES(i, unit->end * p->length - start) {
    weights += weight[i] * weight[i];
    gradients += gradient[i] * gradient[i];
    products += weight[i] * gradient[i];
  }
  Sums sums = {total(weights), total(gradients), total(products)};
  return sums;
}

HELPER void fromage_unit(const Parameter *p, const Unit *unit, const double *h, double direction,
                         Sums sums) {
  if (!(sums.b <= 3.402823466e38)) return;
  const double lr = h[FROMAGE_LR], prefactor = 1 / sqrt(1 + lr * lr);
  const double rate = direction * lr * (sums.a > 0 && sums.b > 0 ? sqrt(sums.a / sums.b) : 1);
  double resize = prefactor;
  if (p->state[0]) {
    double squares = sums.a - 2 * rate * sums.c + rate * rate * sums.b;
    double norm = prefactor * sqrt(squares > 0 ? squares : 0);
    if (norm > *p->state[0]) resize *= *p->state[0] / norm;
  }
  const float kept = resize, step = resize * rate;
  const Index start = unit->row * p->length;
  const float *RESTRICT gradient = p->gradient + start;
  float *RESTRICT weight = p->weight + start;
  LANES(i, unit->end * p->length - start) weight[i] = kept * weight[i] - step * gradient[i];
}

/* LARS. state: momentum buffer */

enum { LARS_LR, LARS_MOMENTUM, LARS_DECAY, LARS_TRUST, LARS_EPS, LARS_ADAPT };

HELPER void lars_unit(const Parameter *p, const Unit *unit, const double *h, double direction,
                      Sums sums) {
  if (!(sums.b <= 3.402823466e38)) return;
  const double norm = sqrt(sums.a), gradient_norm = sqrt(sums.b);
  const double trust = h[LARS_TRUST] * norm / (gradient_norm + h[LARS_DECAY] * norm + h[LARS_EPS]);
  const float ratio = h[LARS_ADAPT] != 0 && sums.a > 0 && sums.b > 0 ? trust : 1;
  const float lr = h[LARS_LR], momentum = h[LARS_MOMENTUM], decay = h[LARS_DECAY];
  const Index start = unit->row * p->length;
  const float *RESTRICT gradient = p->gradient + start;
  float *RESTRICT weight = p->weight + start;
  if (!p->state[0]) {
    LANES(i, unit->end * p->length - start)
      weight[i] -= lr * ratio * ((float)direction * gradient[i] + decay * weight[i]);
    return;
  }
  float *RESTRICT buffer = p->state[0] + start;
  LANES(i, unit->end * p->length - start) {
    float update = (float)direction * gradient[i] + decay * weight[i];
    buffer[i] = momentum * buffer[i] + ratio * update;
    weight[i] -= lr * buffer[i];
  }
}

/* LAMB. state: first and second moment */

enum { LAMB_LR, LAMB_BETA1, LAMB_BETA2, LAMB_EPS, LAMB_DECAY, LAMB_UNBIAS, LAMB_CLAMP, LAMB_CENTER,
       LAMB_NORMALIZE };

typedef struct {
  float eps, decay, unbias1, unbias2;
} Lamb;

HELPER Lamb lamb_of(const Parameter *p, const double *h) {
  Lamb k;
  k.eps = h[LAMB_EPS];
  k.decay = h[LAMB_DECAY];
  k.unbias1 = h[LAMB_UNBIAS] != 0 ? corrected(h[LAMB_BETA1], *p->step) : 1;
  k.unbias2 = h[LAMB_UNBIAS] != 0 ? corrected(h[LAMB_BETA2], *p->step) : 1;
  return k;
}

/* The updates of m elements from the moments; the gradient is read only if some is not usable. */
HELPER void lamb_updates(const Parameter *p, Lamb k, Index at, Index m, int all_usable,
                         float *RESTRICT update) {
  const float *RESTRICT gradient = p->gradient + at, *RESTRICT weight = p->weight + at;
  const float *RESTRICT first = p->state[0] + at, *RESTRICT second = p->state[1] + at;
  LANES(i, m) {
    float d = divided(first[i] * k.unbias1, root(second[i] * k.unbias2) + k.eps);
    update[i] = d + k.decay * weight[i];
  }
  if (!all_usable)
    LANES(i, m) update[i] = usable(gradient[i]) ? update[i] : 0;
}

/* Keeps the updates in work, if there is one for this unit. */
HELPER Sums lamb_norms(const Parameter *p, const Unit *unit, const double *h, double direction,
                       float *work, float *scratch) {
  const Lamb k = lamb_of(p, h);
  const float beta1 = h[LAMB_BETA1], beta2 = h[LAMB_BETA2], flip = direction;
  const Index start = unit->row * p->length, n = unit->end * p->length - start;
  float weights = 0, updates = 0;
  int broken = 0;
  BLOCKS(b, m, n) {
    const float *RESTRICT gradient = p->gradient + start + b;
    const float *RESTRICT weight = p->weight + start + b;
    float *RESTRICT first = p->state[0] + start + b, *RESTRICT second = p->state[1] + start + b;
    float *RESTRICT update = work ? work + b : scratch;
    int bad = 0;
    LANES(i, m) {
      float g = flip * gradient[i];
      int ok = usable(g);
      bad += !ok;
      first[i] = ok ? beta1 * first[i] + (1 - beta1) * g : first[i];
      second[i] = ok ? beta2 * second[i] + (1 - beta2) * g * g : second[i];
    }
    lamb_updates(p, k, start + b, m, bad == 0, update);
    LANES(i, m) {
      weights += weight[i] * weight[i];
      updates += update[i] * update[i];
    }
    broken += bad;
  }
  Sums sums = {total(weights), total(updates), total(broken)};
  return sums;
}

HELPER void lamb_unit(const Parameter *p, const Unit *unit, const double *h, Sums sums,
                      const float *work, float *scratch) {
  const Lamb k = lamb_of(p, h);
  const double norm = fmin(sqrt(sums.a), h[LAMB_CLAMP]);
  const float rate = h[LAMB_LR] * (norm > 0 && sums.b > 0 ? norm / sqrt(sums.b) : 1);
  const int center = h[LAMB_CENTER] != 0, normalize = h[LAMB_NORMALIZE] != 0;
  const int constrained = p->length > 1 && (center || normalize);
  const Index start = unit->row * p->length, all = unit->end * p->length - start;
  const Index n = constrained ? p->length : all;
  for (Index at = 0; at < all; at += n) {
    float *RESTRICT row = p->weight + start + at;
    float sum = 0, squares = 0;
    BLOCKS(b, m, n) {
      const float *RESTRICT update = work ? work + at + b : scratch;
      float *RESTRICT weight = row + b;
      if (!work) lamb_updates(p, k, start + at + b, m, sums.c == 0, scratch);
      LANES(i, m) weight[i] -= rate * update[i];
      if (constrained) LANES(i, m) { sum += weight[i]; squares += weight[i] * weight[i]; }
    }
    if (constrained) project(row, n, total(sum), total(squares), center, normalize);
  }
}

#define RV(name, kind)                                                                          \
  OVER_UNITS(name, if (p->length > 1) rotate_rows(kind, p, unit, h, direction, scratch);        \
             else step_elements(kind, p, unit, h, direction);)

OVER_UNITS(nero, if (p->length > 1) nero_rows(p, unit, h, direction);
           else nero_elements(p, unit, h, direction);)
RV(adamw, ADAMW)
RV(adam_l2, ADAM_L2)
RV(sgd, SGD)
RV(lion, LION)
OVER_UNITS(madam, madam_unit(p, unit, h, direction, scratch);
           project_unit(p, unit, h[MADAM_CENTER] != 0, h[MADAM_NORMALIZE] != 0);)

RELATIVE(fromage, norms(p, unit), fromage_unit(p, unit, h, direction, all);)
RELATIVE(lars, norms(p, unit), lars_unit(p, unit, h, direction, all);)
#define WORK (unit->offset < 0 ? 0 : work + unit->offset)
RELATIVE(lamb, lamb_norms(p, unit, h, direction, WORK, scratch),
         lamb_unit(p, unit, h, all, WORK, scratch);)
