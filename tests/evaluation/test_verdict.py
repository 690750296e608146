import dataclasses

from tests.evaluation import made_up
from tether.evaluation.summary import summarize
from tether.evaluation.verdict import Training, verdict
from tether.statistics import Interval


def found(gold, proxy, **arguments):
    """The verdict on prompts whose ppo scores exceed those of sft by `gold` and `proxy`."""
    samples = [
        made_up.sample(
            policy=policy,
            prompt_index=i,
            scores={"gold": ppo * gold[i], "proxy": ppo * proxy[i]},
            kl=2.5 * ppo,
        )
        for ppo, policy in enumerate(["sft", "ppo"])
        for i in range(len(gold))
    ]
    return verdict(summarize(samples, baseline="sft", scorers=["gold", "proxy"], **arguments))


def test_better():
    result = found([0.5, 1.0], [1.0, 1.0])
    assert result.tone == "better"
    assert result.text == (
        "ppo is better than sft: +0.75 on the gold score (95% interval +0.50 to +1.00, which "
        "excludes 0), and it wins 100% of the comparisons on the same prompt (95% interval 100 to "
        "100%), over 2 prompts. It is 2.5 nats per answer away from the reference."
    )
    assert result.warning == ""


def test_worse_while_the_proxy_rose_is_reward_hacking():
    result = found([-0.5, -1.0], [1.0, 2.0])
    assert result.tone == "worse"
    assert result.text.startswith("ppo is worse than sft: -0.75 on the gold score")
    assert result.warning.startswith("Yet proxy (+1.50 [+1.00, +2.00]) rose. A score that rises")


def test_unclear():
    result = found([-0.5, 1.0], [1.0, -1.0])
    assert result.tone == "unclear"
    assert result.text.startswith("ppo is not clearly different from sft: +0.25 on the gold score")
    assert "(95% interval -0.50 to +1.00, which includes 0)" in result.text
    assert result.warning == ""


def test_one_prompt_has_no_interval():
    result = found([1.0], [1.0])
    assert result.tone == "unclear"
    assert "+1.00 on the gold score (one prompt: no interval)" in result.text


def test_the_tuned_policy_is_the_one_after_the_baseline():
    assert verdict(made_up.summary()).text.startswith("ppo is not clearly different from sft")
    last = [each for each in made_up.samples() if each.policy != "ppo"]
    reached = verdict(summarize(last, baseline="sft", scorers=["gold"]))
    assert reached.text.startswith("base is worse than sft")


def test_one_policy_has_no_verdict():
    alone = [dataclasses.replace(each, policy="sft") for each in made_up.samples()[:6]]
    assert verdict(summarize(alone, baseline="sft", scorers=["gold"])) is None


def test_the_best_of_several_samples_is_no_tuned_policy():
    chosen = [
        dataclasses.replace(each, policy="sft best of 4", kl=None)
        for each in made_up.samples()
        if each.policy == "sft"
    ]
    ppo = [each for each in made_up.samples() if each.policy == "ppo"]
    sft = [each for each in made_up.samples() if each.policy == "sft"]
    found = verdict(summarize([*sft, *chosen, *ppo], baseline="sft", scorers=["gold"]))
    assert found.policy == "ppo"


def told(training):
    return verdict(made_up.summary(), training={"ppo": training}).text.partition("reference.")[2]


def test_alarms_are_told_where_somebody_watched():
    assert told(None) == ""
    assert told(Training(alarms=[])) == " No alarm was raised while it trained."
    assert told(Training(alarms=[4], rolled_back_to=0)) == (
        " One alarm was raised while it trained, at step 4. It was rolled back to step 0."
    )
    assert told(Training(alarms=[4, 9], stopped="KL above 8")) == (
        " 2 alarms were raised while it trained, the first at step 4. It stopped early: KL above 8."
    )


def test_the_share_of_the_best_reachable_is_told():
    found = verdict(made_up.summary(), reached={"ppo": Interval(0.714, 0.652, 0.768)})
    assert found.text.endswith(
        "It reaches 71% of the best reachable gain of the proxy at its KL (95% interval 65 to 77%)."
    )
