"""Students that learn from the answers of the network with one of them in place."""

import pytest
import torch
from given import dissected, randn
from torch import nn

import language
import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.measure import kl_per_sample, log_probabilities
from shoal.pipeline.candidate_refit import span_forwards
from shoal.preserve import evaluating, patched
from shoal.replace import answers, build_segments, find_spans, students_of, train_students
from shoal.replace.answers import Answers
from shoal.replace.student_trainer import StudentTrainer
from shoal.training import TrainingBudget


def kl(original, changed, batch):
    return kl_per_sample(log_probabilities(original, None), changed)


@pytest.fixture(scope="module")
def graph():
    return dissected(lambda: networks.CifarResNet(1, widths=(4, 6, 8)), 3, 8, 8)


def images(count=6, size=16, seed=0):
    return [Batch((randn(size, 3, 8, 8, seed=seed + number),)) for number in range(count)]


def students(graph, *kinds):
    segments = build_segments(graph)
    return students_of(graph, segments, find_spans(graph, segments, 2), kinds)


def damage_in_place(graph, fitted, data):
    with evaluating(graph.model):
        damages = []
        for batch in data:
            original = graph.model(*batch.args)
            with patched(span_forwards(graph.model, fitted.span, fitted.module)):
                damages.append(kl(original, graph.model(*batch.args), batch))
    return float(torch.cat(damages).mean())


def test_answers_help_on_samples_held_back_at_as_many_steps(graph):
    specs, budget, held_back = students(graph, "narrow1/4"), TrainingBudget(steps=60), images(seed=50)
    ends = train_students(graph, images(), specs, budget=budget).fitted
    both = train_students(graph, images(), specs, budget=budget, answers=kl).fitted
    before = [damage_in_place(graph, fitted, held_back) for fitted in ends]
    after = [damage_in_place(graph, fitted, held_back) for fitted in both]
    assert [fitted.span for fitted in both] == [fitted.span for fitted in ends]
    assert sum(after) < 0.95 * sum(before)


def test_a_student_gets_the_gradient_of_the_network_with_it_in_place(graph):
    spec = students(graph, "narrow")[0]
    student, batch = StudentTrainer(spec), images(1)[0]
    with evaluating(graph.model):
        learned = Answers(graph, kl)
        learned.record(batch)
        with torch.enable_grad():
            student._backward(learned.loss(student))
            gradients = [parameter.grad for parameter in student.module.parameters()]
            with patched(span_forwards(graph.model, spec.span, student.module)):
                changed = graph.model(*batch.args)
            truth = torch.autograd.grad(kl(learned.original, changed, batch).mean(), list(student.module.parameters()))
    for gradient, true in zip(gradients, truth, strict=True):
        torch.testing.assert_close(gradient, true)
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients)


def test_the_original_is_left_as_it_was(graph):
    before = {name: tensor.clone() for name, tensor in graph.model.state_dict().items()}
    train_students(graph, images(), students(graph, "narrow"), budget=TrainingBudget(steps=4), answers=kl)
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in graph.model.parameters())
    assert not any("forward" in module.__dict__ for module in graph.model.modules())


def test_each_student_looks_at_the_answers_in_one_of_four_steps(graph, monkeypatch):
    seen = []
    loss = Answers.loss

    def counting(self, student):
        if torch.is_grad_enabled():
            seen.append(student.spec.name)
        return loss(self, student)

    monkeypatch.setattr(Answers, "loss", counting)
    specs = students(graph, "narrow", "block")
    train_students(graph, images(), specs, budget=TrainingBudget(steps=8), answers=kl)
    assert answers.TURNS == 4
    assert sorted(seen) == sorted([spec.name for spec in specs] * 2)


def test_a_damage_without_a_gradient_is_left_out_and_said(graph):
    def counted(original, changed, batch):
        return (original.argmax(1) != changed.argmax(1)).double()

    specs = students(graph, "narrow")
    trained = train_students(graph, images(), specs, budget=TrainingBudget(steps=4), answers=counted)
    alone = train_students(graph, images(), specs, budget=TrainingBudget(steps=4))
    assert "the damage of answers has no gradient" in trained.notes[-1]
    assert [one.r2_held_out for one in trained.fitted] == [one.r2_held_out for one in alone.fitted]


class InPlace(nn.Module):
    """What follows a block writes into its output, and scales it in place."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(networks.PreactBlock(4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).mul_(1.25).relu_()
        return self.head(x.mean((2, 3)))


def test_what_follows_may_work_in_place():
    graph = dissected(InPlace, 4, 6, 6)
    data = [Batch((randn(8, 4, 6, 6, seed=seed),)) for seed in range(4)]
    trained = train_students(graph, data, students(graph, "narrow"), budget=TrainingBudget(steps=4), answers=kl)
    assert trained.fitted


def test_half_precision_learns_from_answers_too():
    torch.manual_seed(0)
    model = networks.randomised(networks.CifarResNet(1, widths=(4, 6, 8))).to(torch.bfloat16).eval()
    data = [Batch((batch.args[0].bfloat16(),)) for batch in images(3)]
    graph = analyze(model, data[0].take(2))
    trained = train_students(graph, data, students(graph, "narrow"), budget=TrainingBudget(steps=4), answers=kl)
    assert {parameter.dtype for one in trained.fitted for parameter in one.module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("asks", [{}, {"use_cache": True}])
def test_students_of_a_decoder_learn_from_its_answers(asks):
    tokens = [Batch(kwargs={"input_ids": language.tokens(8, 12, seed=seed), **asks}) for seed in range(3)]
    graph = analyze(language.llama(), tokens[0].take(2))

    def damage(original, changed, batch):
        return kl(original.logits, changed.logits, batch)

    specs = [spec for spec in students(graph, "block") if spec.span.start < 2]
    trained = train_students(graph, tokens, specs, budget=TrainingBudget(steps=5), answers=damage)
    assert trained.fitted
    assert len(trained.notes) == 1
