# Runs once after each start of the machine: no wait of the firmware's boot services is longer than 10 ms from then on. The
# loader waits three seconds after each of our programs failed, so that a person can read why.
# Microsoft's calling convention; rbx are the boot services.
.intel_syntax noprefix
    push rbx
    push rsi
    push rdi
    sub rsp, 0x30
    mov rbx, [rdx + 0x60]
    # AllocatePool of code: it stays when this program is gone.
    mov ecx, 3
    mov edx, offset last - brief
    lea r8, [rip + place]
    call [rbx + 0x40]
    test rax, rax
    jnz done
    # Stall
    mov rax, [rbx + 0xf8]
    mov [rip + original], rax
    cld
    mov rdi, [rip + place]
    lea rsi, [rip + brief]
    mov ecx, offset last - brief
    rep movsb
    mov rax, [rip + place]
    mov [rbx + 0xf8], rax
    xor eax, eax
done:
    add rsp, 0x30
    pop rdi
    pop rsi
    pop rbx
    ret

brief:
    mov eax, 10000
    cmp rcx, rax
    cmova rcx, rax
    jmp [rip + original]
original:
    .quad 0
last:

place:
    .quad 0
    .word 0
