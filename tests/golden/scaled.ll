declare <8 x float> @llvm.fmuladd.v8f32(<8 x float>, <8 x float>, <8 x float>)
define void @kernel(ptr noalias %args, i64 %thread, i64 %threads) #0 {
entry:
 %v1 = load ptr, ptr %args, align 8
 %v2 = getelementptr i8, ptr %args, i64 8
 %v3 = load ptr, ptr %v2, align 8
 %v4 = getelementptr i8, ptr %args, i64 16
 %v5 = load ptr, ptr %v4, align 8
 %v6 = getelementptr i8, ptr %args, i64 24
 %v7 = load ptr, ptr %v6, align 8
 br label %loop8
loop8:
 %loop8i = phi i64 [ 0, %entry ], [ %v34, %loop16end ]
 %v9 = mul i64 %thread, 5
 %v10 = udiv i64 %v9, %threads
 %v11 = add i64 %thread, 1
 %v12 = mul i64 %v11, 5
 %v13 = udiv i64 %v12, %threads
 %v14 = mul i64 %v10, 8
 %v15 = mul i64 %v13, 8
 %v17 = icmp slt i64 %v14, %v15
 br i1 %v17, label %loop16, label %loop16end
loop16:
 %loop16i = phi i64 [ %v14, %loop8 ], [ %v32, %loop16 ]
 %v18 = mul i64 %loop8i, 40
 %v19 = add i64 %v18, %loop16i
 %v20 = mul i64 %v19, 4
 %v21 = getelementptr i8, ptr %v3, i64 %v20
 %v22 = load <8 x float>, ptr %v21, align 4
 %v23 = mul i64 %loop16i, 4
 %v24 = getelementptr i8, ptr %v5, i64 %v23
 %v25 = load <8 x float>, ptr %v24, align 4
 %v26 = fmul <8 x float> %v22, %v25
 %v27 = call <8 x float> @llvm.fmuladd.v8f32(<8 x float> %v22, <8 x float> %v25, <8 x float> splat (float 0x3FF0000000000000))
 %v28 = fcmp ugt <8 x float> %v27, splat (float 0x0000000000000000)
 %v29 = select <8 x i1> %v28, <8 x float> %v27, <8 x float> splat (float 0x0000000000000000)
 %v30 = mul i64 %v19, 4
 %v31 = getelementptr i8, ptr %v7, i64 %v30
 store <8 x float> %v29, ptr %v31, align 4
 %v32 = add nsw i64 %loop16i, 8
 %v33 = icmp slt i64 %v32, %v15
 br i1 %v33, label %loop16, label %loop16end
loop16end:
 %v34 = add nsw i64 %loop8i, 1
 %v35 = icmp slt i64 %v34, 6
 br i1 %v35, label %loop8, label %loop8end
loop8end:
 ret void
}
attributes #0 = { nounwind "prefer-vector-width"="256" "min-legal-vector-width"="256" }
