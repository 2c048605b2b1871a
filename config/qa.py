# Questions about the scene, learnt beside the actions: 2 CPU cores, 17 min after `make demo`;
# where 99 %, which hand 100 %, what now 88 % right on held-out rows, commit 845c218.
# torchrun --standalone --nproc_per_node=2 train.py config/demo.py config/qa.py
# python sample.py --ckpt=out/qa --eval_qa=600
out_dir = 'out/qa'
init_from = 'out/demo'
# Half of the samples are a question and its answer instead of an instruction and actions.
question_share = 0.5
reask_share = 0.05
noise_samples = 2
max_steps = 2_600  # 128 x 2,600 x 0.5 = 166k questions
