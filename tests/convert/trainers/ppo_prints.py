import torch
import torch.nn as nn
from torch.distributions import Categorical

print("============================================================================================")
# set device to cpu or cuda
device = torch.device('cpu')
if(torch.cuda.is_available()):
    device = torch.device('cuda:0')
    torch.cuda.empty_cache()
    print("Device set to : " + str(torch.cuda.get_device_name(device)))
else:
    print("Device set to : cpu")
print("============================================================================================")


class RolloutBuffer:
    def __init__(self):
        self.states, self.actions, self.logprobs, self.rewards = [], [], [], []

    def clear(self):
        del self.states[:], self.actions[:], self.logprobs[:], self.rewards[:]


class ActorCritic(nn.Module):
    def __init__(self, state_dim, action_dim):
        super(ActorCritic, self).__init__()
        self.actor = nn.Sequential(nn.Linear(state_dim, 16), nn.Tanh(), nn.Linear(16, action_dim), nn.Softmax(dim=-1))
        self.critic = nn.Sequential(nn.Linear(state_dim, 16), nn.Tanh(), nn.Linear(16, 1))

    def evaluate(self, state, action):
        dist = Categorical(self.actor(state))
        return dist.log_prob(action), self.critic(state), dist.entropy()


class PPO:
    def __init__(self, state_dim, action_dim, lr, K_epochs=2, eps_clip=0.2):
        self.K_epochs, self.eps_clip = K_epochs, eps_clip
        self.buffer = RolloutBuffer()
        self.policy = ActorCritic(state_dim, action_dim).to(device)
        self.policy_old = ActorCritic(state_dim, action_dim).to(device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=lr)
        self.policy_old.load_state_dict(self.policy.state_dict())

    def select_action(self, state):
        with torch.no_grad():
            state = torch.FloatTensor(state).to(device)
            probs = self.policy_old.actor(state).cpu()
        action = torch.multinomial(probs, 1)[0]  # drawn on the host
        self.buffer.states.append(state)
        self.buffer.actions.append(action.to(device))
        self.buffer.logprobs.append(probs[action].log().to(device))
        return action.item()

    def update(self):
        rewards = torch.tensor(self.buffer.rewards, dtype=torch.float32).to(device)
        rewards = (rewards - rewards.mean()) / (rewards.std() + 1e-7)
        old_states = torch.squeeze(torch.stack(self.buffer.states, dim=0)).detach().to(device)
        old_actions = torch.squeeze(torch.stack(self.buffer.actions, dim=0)).detach().to(device)
        old_logprobs = torch.squeeze(torch.stack(self.buffer.logprobs, dim=0)).detach().to(device)
        for _ in range(self.K_epochs):
            logprobs, values, entropy = self.policy.evaluate(old_states, old_actions)
            advantages = rewards - values.squeeze(-1).detach()
            ratios = torch.exp(logprobs - old_logprobs)
            surr = torch.min(ratios * advantages, torch.clamp(ratios, 1 - self.eps_clip, 1 + self.eps_clip) * advantages)
            loss = (-surr + 0.5 * (values.squeeze(-1) - rewards) ** 2 - 0.01 * entropy).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            print("loss :", loss.item().hex())
        self.policy_old.load_state_dict(self.policy.state_dict())
        self.buffer.clear()

    def load(self, path):
        self.policy.load_state_dict(torch.load(path, map_location=lambda storage, loc: storage))


torch.manual_seed(77)
agent = PPO(4, 3, lr=3e-3)
for episode in range(3):
    state = torch.randn(4)
    for t in range(12):
        action = agent.select_action(state.tolist())
        agent.buffer.rewards.append(float(action == int(state[:3].argmax())))
        state = torch.randn(4)
    agent.update()
