"""Eight doubles as one value in compiled code: a loop written with them is vectorised, whatever LLVM's heuristics say.

LLVM splits them on machines with narrower registers. Arrays are contiguous and float64; an offset counts doubles from the
array's start and is not checked. The ``get_`` and ``put_`` functions read and write records of mixed numbers, kept as uint32.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 8
_DOUBLE, _INT, _SHORT = ir.DoubleType(), ir.IntType(32), ir.IntType(16)
_VECTOR = ir.VectorType(_DOUBLE, LANES)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


_lanes = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, _VECTOR)


@intrinsic
def load(typing, array, offset):
    """array[offset:offset + 8]"""
    def build(context, builder, signature, args):
        return _load(builder, _data(context, builder, signature.args[0], args[0]), args[1])
    return _lanes(array, types.intp), build


@intrinsic
def store(typing, array, offset, lanes):
    """array[offset:offset + 8] = lanes"""
    def build(context, builder, signature, args):
        _store(builder, _data(context, builder, signature.args[0], args[0]), args[1], args[2])
        return context.get_dummy_value()
    return types.void(array, types.intp, _lanes), build


@intrinsic
def get_double(typing, words, offset):
    """The float64 in words[offset:offset + 2] of uint32."""
    def build(context, builder, signature, args):
        return builder.load(_within(context, builder, signature, args, _DOUBLE, 1), align=4)
    return types.float64(words, types.intp), build


@intrinsic
def put_double(typing, words, offset, number):
    """words[offset:offset + 2] of uint32 = the float64."""
    def build(context, builder, signature, args):
        builder.store(args[2], _within(context, builder, signature, args, _DOUBLE, 1), align=4)
        return context.get_dummy_value()
    return types.void(words, types.intp, types.float64), build


@intrinsic
def get_short(typing, words, offset):
    """The uint16 number ``offset`` of an array of uint32."""
    def build(context, builder, signature, args):
        number = builder.load(_within(context, builder, signature, args, _SHORT, 2))
        return context.cast(builder, number, types.uint16, types.intp)
    return types.intp(words, types.intp), build


@intrinsic
def put_short(typing, words, offset, number):
    """The uint16 number ``offset`` of an array of uint32 = the number."""
    def build(context, builder, signature, args):
        number = context.cast(builder, args[2], signature.args[2], types.uint16)
        builder.store(number, _within(context, builder, signature, args, _SHORT, 2))
        return context.get_dummy_value()
    return types.void(words, types.intp, types.intp), build


@intrinsic
def get_word(typing, words, offset):
    """words[offset] of uint32, as an offset."""
    def build(context, builder, signature, args):
        number = builder.load(_within(context, builder, signature, args, _INT, 1))
        return context.cast(builder, number, types.uint32, types.intp)
    return types.intp(words, types.intp), build


@intrinsic
def put_word(typing, words, offset, number):
    """words[offset] of uint32 = the number."""
    def build(context, builder, signature, args):
        number = context.cast(builder, args[2], signature.args[2], types.uint32)
        builder.store(number, _within(context, builder, signature, args, _INT, 1))
        return context.get_dummy_value()
    return types.void(words, types.intp, types.intp), build


@intrinsic
def spread(typing, number):
    """Eight times the same number."""
    def build(context, builder, signature, args):
        return _spread(builder, args[0])
    return _lanes(types.float64), build


@intrinsic
def multiply(typing, a, b):
    """a * b"""
    def build(context, builder, signature, args):
        return builder.fmul(*args)
    return _lanes(_lanes, _lanes), build


def outer_product(height: int, width: int):
    """Compiled ``f(chunk, pitch, count, a, b, total, place)``: a tile of chunk' chunk, added to what is there already.

    total[place + 8 (width i + w) + l] += sum_q chunk[q, a + i] chunk[q, b + 8 w + l], i < height, w < width, l < 8.
    ``chunk``: ``count`` rows, ``pitch`` doubles apart. The height * width sums stay in registers.
    """
    @intrinsic
    def tile(typing, chunk, pitch, count, a, b, total, place):
        def build(context, builder, signature, args):
            chunk, pitch, count, a, b, total, place = args
            chunk, total = (_data(context, builder, signature.args[i], x) for i, x in ((0, chunk), (5, total)))
            spots = [builder.add(place, ir.Constant(place.type, LANES * i)) for i in range(height * width)]
            sums = [cgutils.alloca_once_value(builder, _load(builder, total, spot)) for spot in spots]
            with cgutils.for_range(builder, count) as loop:
                row = builder.mul(loop.index, pitch)
                left = builder.gep(chunk, [builder.add(row, a)])
                right = builder.add(row, b)
                columns = [_load(builder, chunk, builder.add(right, ir.Constant(row.type, LANES * w))) for w in range(width)]
                for i in range(height):
                    number = _spread(builder, builder.load(builder.gep(left, [ir.Constant(row.type, i)])))
                    for w in range(width):
                        where = sums[width * i + w]
                        builder.store(_fused(builder, number, columns[w], builder.load(where)), where)
            for spot, where in zip(spots, sums, strict=True):
                _store(builder, total, spot, builder.load(where))
            return context.get_dummy_value()
        n = types.intp
        return types.void(chunk, n, n, n, n, total, n), build
    return tile


def _data(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _within(context, builder, signature, args, kind, parts):
    """Pointer to a number of another kind; ``parts`` of the offset's units make a word."""
    data = _data(context, builder, signature.args[0], args[0])
    if parts == 1:
        return builder.bitcast(builder.gep(data, [args[1]]), kind.as_pointer())
    return builder.gep(builder.bitcast(data, kind.as_pointer()), [args[1]])


def _load(builder, data, offset):
    return builder.load(builder.bitcast(builder.gep(data, [offset]), _VECTOR.as_pointer()), align=8)


def _store(builder, data, offset, lanes):
    builder.store(lanes, builder.bitcast(builder.gep(data, [offset]), _VECTOR.as_pointer()), align=8)


def _spread(builder, number):
    empty = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(empty, number, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES))


def _fused(builder, a, b, c):
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f64"), [a, b, c])
