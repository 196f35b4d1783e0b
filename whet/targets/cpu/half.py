"""Conversion of float16 where the processor has no instruction for it.

LLVM then calls these functions, which its run-time library would define; a module that needs them
brings them along. Both go through a number's bits, and round to nearest even.
"""

TEXT = """
define hidden float @__extendhfsf2(half %h) {
 %b = bitcast half %h to i16
 %w = zext i16 %b to i32
 %s = and i32 %w, 32768
 %sign = shl i32 %s, 16
 %m = and i32 %w, 32767
 %shifted = shl i32 %m, 13
 %small = bitcast i32 %shifted to float
 %scaled = fmul float %small, 0x46F0000000000000
 %bits = bitcast float %scaled to i32
 %special = icmp uge i32 %m, 31744
 %infinite = or i32 %shifted, 2139095040
 %size = select i1 %special, i32 %infinite, i32 %bits
 %all = or i32 %size, %sign
 %y = bitcast i32 %all to float
 ret float %y
}
define hidden half @__truncsfhf2(float %x) {
 %w = bitcast float %x to i32
 %h = lshr i32 %w, 16
 %sign = and i32 %h, 32768
 %a = and i32 %w, 2147483647
 %odd0 = lshr i32 %a, 13
 %odd = and i32 %odd0, 1
 %rounded0 = add i32 %a, 3355447295
 %rounded1 = add i32 %rounded0, %odd
 %normal = lshr i32 %rounded1, 13
 %f = bitcast i32 %a to float
 %added = fadd float %f, 0.5
 %addedbits = bitcast float %added to i32
 %denormal = sub i32 %addedbits, 1056964608
 %tiny = icmp ult i32 %a, 947912704
 %finite = select i1 %tiny, i32 %denormal, i32 %normal
 %payload0 = and i32 %odd0, 1023
 %payload = or i32 %payload0, 32256
 %nan = icmp ugt i32 %a, 2139095040
 %special = select i1 %nan, i32 %payload, i32 31744
 %large = icmp uge i32 %a, 1199570944
 %size = select i1 %large, i32 %special, i32 %finite
 %all = or i32 %size, %sign
 %t = trunc i32 %all to i16
 %y = bitcast i16 %t to half
 ret half %y
}
"""
