"""Innermost loops of the rollouts, written as vectors for LLVM, because its heuristics vectorise some shapes and not others.

A vector has 64 bytes; LLVM splits it on machines with narrower registers. Arrays are contiguous; offsets count numbers from
their start and are not checked. Sums may be reordered, but NaN and Inf stay what they are.
"""

import math

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.polynomial.chebyshev import cheb2poly, chebinterpolate

BYTES = 64
HEIGHT, WIDTH = 4, 4     # of a tile of ``product``: rows, vectors
ROWS = 6                 # of a tile of ``layer``


@intrinsic
def relu_layers(typing, first, at, last, last_bias, row, x, units, tile):
    """x[:, p] += last[row[p]]' max(first' (x[:, p], 1), 0) + last_bias[row[p]] for the P plans of ``x`` (D, P).

    ``first``, from ``at`` on, has D weights and a bias for a vector of hidden units, then for the next vector, until ``units``
    are done; a row of ``last`` likewise, without biases. ``tile``: a tuple of P tuples of D, whatever is in them.
    """
    def build(context, builder, signature, args):
        code = _Code(context, builder, signature, args, first.dtype)
        P, D = tile.count, tile.dtype.count
        data, out, bias, rows, x = code.data(0, args[1]), code.data(2), code.data(3), code.data(4), code.data(5)
        units = args[6]
        places = [builder.mul(builder.load(builder.gep(rows, [code.number(p)])), code.number(D)) for p in range(P)]
        outs = [builder.gep(out, [builder.mul(place, units)]) for place in places]
        state = [[code.spread(builder.load(builder.gep(x, [code.number(d * P + p)]))) for d in range(D)] for p in range(P)]
        sums = [[code.variable(code.zero) for _ in range(D)] for _ in range(P)]
        with cgutils.for_range_slice(builder, code.number(0), units, code.number(code.lanes)) as (unit, _):
            inward, outward = (builder.mul(unit, code.number(n)) for n in (D + 1, D))
            weight = [code.load(data, inward, d * code.lanes) for d in range(D + 1)]
            for p in range(P):
                z = weight[D]
                for d in range(D):
                    z = code.fused(state[p][d], weight[d], z)
                z = code.relu(z)
                for d in range(D):
                    total = code.fused(code.load(outs[p], outward, d * code.lanes), z, builder.load(sums[p][d]))
                    builder.store(total, sums[p][d])
        for p in range(P):
            for d in range(D):
                place = builder.gep(x, [code.number(d * P + p)])
                change = builder.load(builder.gep(bias, [builder.add(places[p], code.number(d))]))
                total = code.total(builder.fadd(builder.load(place), change), builder.load(sums[p][d]))
                builder.store(total, place)
        return context.get_dummy_value()
    n = types.intp
    return types.void(first, n, last, last_bias, row, x, n, tile), build


@intrinsic
def product(typing, left, at, right, column, total, place, count, pitch):
    """A tile of a matrix product: total[place + pitch i + l] = sum_q left[at + count i + q] right[column + pitch q + l].

    i < HEIGHT, and l goes over WIDTH vectors; the sums stay in registers.
    """
    def build(context, builder, signature, args):
        code = _Code(context, builder, signature, args, left.dtype)
        left_data, right_data, total_data = (code.data(i, args[i + 1]) for i in (0, 2, 4))
        count, pitch = args[6:]
        sums = [[code.variable(code.zero) for _ in range(WIDTH)] for _ in range(HEIGHT)]
        with cgutils.for_range(builder, count) as loop:
            row = builder.mul(loop.index, pitch)
            columns = [code.load(right_data, row, w * code.lanes) for w in range(WIDTH)]
            for i in range(HEIGHT):
                place = builder.add(loop.index, builder.mul(count, code.number(i)))
                number = code.spread(builder.load(builder.gep(left_data, [place])))
                for w in range(WIDTH):
                    builder.store(code.fused(number, columns[w], builder.load(sums[i][w])), sums[i][w])
        for i in range(HEIGHT):
            for w in range(WIDTH):
                row = builder.mul(pitch, code.number(i))
                code.store(builder.load(sums[i][w]), total_data, row, w * code.lanes)
        return context.get_dummy_value()
    n = types.intp
    return types.void(left, n, right, n, total, n, n, n), build


@intrinsic
def four_by_four(typing, table, at, row, value, lane, pitch):
    """The two sums over d = 0, 1:  sum_ij value[i, lane] value[4 + j, lane] table[at + i row + 2 j + d]

    of float32; ``value``: 8 rows, ``pitch`` numbers apart.
    """
    def build(context, builder, signature, args):
        code = _Code(context, builder, signature, args, table.dtype, lanes=8)
        table_data, values = code.data(0, args[1]), code.data(3, args[4])
        numbers = [builder.load(builder.gep(values, [builder.mul(args[5], code.number(i))])) for i in range(8)]
        total = code.zero
        for i in range(4):
            line = code.load(table_data, builder.mul(args[2], code.number(i)))
            total = code.fused(code.spread(numbers[i]), line, total)
        others = code.zero
        for j in range(8):
            others = builder.insert_element(others, numbers[4 + j // 2], ir.Constant(_INT, j))
        total = builder.fmul(total, others)
        while total.type.count > 2:
            half = range(total.type.count // 2)
            total = builder.fadd(code.pick(total, half), code.pick(total, [len(half) + i for i in half]))
        return cgutils.pack_array(builder, [builder.extract_element(total, ir.Constant(_INT, d)) for d in range(2)])
    n = types.intp
    return types.UniTuple(table.dtype, 2)(table, n, n, value, n, n), build


def layer(width: int):
    """A tile of a network's layer, compiled:
    ``f(x, x_at, x_pitch, weight, at, bias, bias_at, out, out_at, out_pitch, count, smooth)``.

        out[out_at + out_pitch i + l] = bias[bias_at + l] + sum_q weight[at + 16 width q + l] x[x_at + x_pitch i + q]

    i < ROWS, q < count, and l goes over ``width`` vectors; the sums stay in registers. ``x`` and ``weight`` are float32, or
    uint32 whose halves are two bfloat16, both of them terms of the sum. So may ``out``, and is then max(., 0), or where
    ``smooth`` is not 0 the SiLU, to the three digits that bfloat16 has.
    """
    @intrinsic
    def tile(typing, x, x_at, x_pitch, weight, at, bias, bias_at, out, out_at, out_pitch, count, smooth):
        def build(context, builder, signature, args):
            code = _Code(context, builder, signature, args, bias.dtype)
            word = _Code(context, builder, signature, args, x.dtype)
            more = code.fused if x.dtype == bias.dtype else code.fused_pairs
            weights, biases, outs = (code.data(i, args[i + 1]) for i in (3, 5, 7))
            rows = [code.data(0, builder.add(args[1], builder.mul(args[2], code.number(i)))) for i in range(ROWS)]
            sums = [[code.variable(code.load(biases, code.number(code.lanes * w))) for w in range(width)] for _ in range(ROWS)]
            with cgutils.for_range(builder, args[10]) as loop:
                line = builder.mul(loop.index, code.number(code.lanes * width))
                columns = [word.load(weights, line, code.lanes * w) for w in range(width)]
                for i in range(ROWS):
                    number = word.spread(builder.load(builder.gep(rows[i], [loop.index])))
                    for w in range(width):
                        builder.store(more(number, columns[w], builder.load(sums[i][w])), sums[i][w])

            def write(activation, lanes):
                for i in range(ROWS):
                    line = builder.mul(args[9], code.number(i))
                    for w in range(width):
                        code.store(activation(builder.load(sums[i][w])), outs, line, lanes * w)
            if out.dtype == bias.dtype:
                write(lambda total: total, code.lanes)
            else:
                with builder.if_else(builder.icmp_signed("!=", args[11], code.number(0))) as branches:
                    for branch, activation in zip(branches, (code.silu, code.relu), strict=True):
                        with branch:
                            write(lambda total, activation=activation: code.halved(activation(total)), code.lanes // 2)
            return context.get_dummy_value()
        n = types.intp
        return types.void(x, n, n, weight, n, bias, n, out, n, n, n, n), build
    return tile


_INT = ir.IntType(32)
# 2 ** x on [-0.5, 0.5] by powers of x, relative error 1e-4: the interpolant at Chebyshev's points
_POWER = cheb2poly(chebinterpolate(lambda x: 2 ** (x / 2), 3)) * 2.0 ** np.arange(4)
llvmlite.binding.initialize_native_asmparser()


class _Code:
    """Writes LLVM's instructions on vectors of one type."""

    def __init__(self, context, builder, signature, args, dtype, lanes: int | None = None) -> None:
        self.context, self.builder, self.signature, self.args = context, builder, signature, args
        self.lanes = lanes or BYTES * 8 // dtype.bitwidth
        self.align = dtype.bitwidth // 8
        self.real = context.get_value_type(dtype)
        self.vector = ir.VectorType(self.real, self.lanes)
        self.zero = ir.Constant(self.vector, None)
        self.kind = f"v{self.lanes}f{dtype.bitwidth}"

    def number(self, n: int):
        return ir.Constant(self.context.get_value_type(types.intp), n)

    def data(self, i: int, offset=None):
        """Pointer into the array that is argument i."""
        start = self.context.make_array(self.signature.args[i])(self.context, self.builder, self.args[i]).data
        return start if offset is None else self.builder.gep(start, [offset])

    def variable(self, value):
        place = cgutils.alloca_once(self.builder, self.vector)
        self.builder.store(value, place)
        return place

    def load(self, data, offset, more: int = 0):
        return self.builder.load(self._at(data, offset, more, self.vector), align=self.align)

    def store(self, value, data, offset, more: int = 0):
        self.builder.store(value, self._at(data, offset, more, value.type), align=self.align)

    def _at(self, data, offset, more: int, kind):
        place = self.builder.add(offset, self.number(more))
        return self.builder.bitcast(self.builder.gep(data, [place]), kind.as_pointer())

    def pick(self, vector, which):
        return self.builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_INT, len(which)), list(which)))

    def spread(self, number):
        """A vector of the same number."""
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), number, ir.Constant(_INT, 0))
        return self.pick(one, [0] * self.lanes)

    def fused(self, a, b, c):
        """a * b + c"""
        return self._call("llvm.fma", self.vector, [self.vector] * 3, [a, b, c])

    def fused_pairs(self, a, b, c):
        """c + the products of both bfloat16 in each word of a and b."""
        words = ir.VectorType(_INT, self.lanes)
        function = ir.FunctionType(self.vector, [words, words, self.vector])
        return self.builder.call(ir.InlineAsm(function, "vdpbf16ps $1, $2, $0", "=v,v,v,0"), [a, b, c])

    def halved(self, a):
        """float32 rounded to bfloat16, two in a word."""
        function = ir.FunctionType(ir.VectorType(_INT, self.lanes // 2), [self.vector])
        return self.builder.call(ir.InlineAsm(function, "vcvtneps2bf16 $1, $0", "=v,v"), [a])

    def relu(self, a):
        """max(a, 0), but NaN stays NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", self.zero, a), self.zero, a)

    def silu(self, a):
        """a / (1 + 2 ** -(a log2 e)) of float32; the power's fraction by a polynomial, its integer part by the exponent."""
        power = self.builder.fmul(a, self._constant(-math.log2(math.e)))
        whole = self._asm("vrndscaleps $$0, $1, $0", power)
        fraction = self.builder.fsub(power, whole)
        value = self._constant(_POWER[-1])
        for coefficient in _POWER[-2::-1]:
            value = self.fused(value, fraction, self._constant(coefficient))
        value = self.builder.fadd(self._asm("vscalefps $2, $1, $0", value, whole), self._constant(1.0))
        return self.builder.fmul(a, self._asm("vrcp14ps $1, $0", value))

    def _constant(self, number: float):
        return ir.Constant(self.vector, [ir.Constant(self.real, number)] * self.lanes)

    def _asm(self, line: str, *args):
        """One instruction of AVX-512 on vectors."""
        function = ir.FunctionType(self.vector, [self.vector] * len(args))
        return self.builder.call(ir.InlineAsm(function, line, ",".join(["=v", *["v"] * len(args)])), args)

    def total(self, number, vector):
        """number + the sum of the vector."""
        return self._call("llvm.vector.reduce.fadd", self.real, [self.real, self.vector], [number, vector], ("reassoc",))

    def _call(self, name: str, result, kinds, args, fastmath=()):
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(result, kinds), f"{name}.{self.kind}")
        return self.builder.call(function, args, fastmath=fastmath)
